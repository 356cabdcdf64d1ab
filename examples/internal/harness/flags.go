package harness

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/url"
	"strings"

	"github.com/redis/go-redis/v9"
)

// Flags is a flag set with the flags that every example has.
type Flags struct {
	*flag.FlagSet

	Redis string // the URL of a real server; "" for miniredis
	Serve string // the address to serve at; "" for none
}

// NewFlags returns the flags of an example that serves path.
func NewFlags(name, path string) *Flags {
	f := &Flags{FlagSet: flag.NewFlagSet(name, flag.ContinueOnError)}
	f.StringVar(&f.Redis, "redis", "", "`URL` of a real Redis, as redis://localhost:6379 (default: miniredis, in this process)")
	f.StringVar(&f.Serve, "serve", "", "serve GET "+path+" at an `address`; :8080 is for this machine alone, 0.0.0.0:8080 for all")
	return f
}

// Parse parses and checks the flags. It returns [flag.ErrHelp] after it wrote the usage
// to help.
func (f *Flags) Parse(args []string, help io.Writer) error {
	// The flag package follows its error with the whole usage, which hides the error.
	f.SetOutput(io.Discard)
	f.Usage = func() {}
	switch err := f.FlagSet.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		_, _ = fmt.Fprintf(help, "Usage: %s [flags]. Without flags it needs nothing installed.\n", f.Name())
		f.SetOutput(help)
		f.PrintDefaults()
		return err
	case err != nil:
		return fmt.Errorf("%w (see -help)", err)
	case f.NArg() > 0:
		return fmt.Errorf("unexpected argument %q (see -help)", f.Arg(0))
	}
	if strings.HasPrefix(f.Serve, ":") {
		f.Serve = "127.0.0.1" + f.Serve // an example opens a port to the network only for an explicit address
	}
	return f.check()
}

func (f *Flags) check() error {
	if f.Redis != "" {
		if _, err := redis.ParseURL(f.Redis); err != nil {
			if e, ok := errors.AsType[*url.Error](err); ok {
				err = e.Err // without the URL, which may have a password
			}
			return fmt.Errorf("-redis: %w", err)
		}
	}
	if f.Serve != "" {
		if _, _, err := net.SplitHostPort(f.Serve); err != nil {
			return fmt.Errorf("-serve: %w", err)
		}
	}
	return nil
}
