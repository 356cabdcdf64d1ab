package harness

import (
	"context"
	"errors"
	"net"
	"net/http"
)

// Serve serves HTTP until ctx ends. Requests that are running then have half of [Patience]
// to end.
func Serve(ctx context.Context, listener net.Listener, handler http.Handler) error {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: Patience}
	served := make(chan error, 1)
	go func() { served <- server.Serve(listener) }() // ends with Shutdown or Close
	select {
	case err := <-served:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Patience/2)
	defer cancel()
	return errors.Join(server.Shutdown(ctx), server.Close())
}
