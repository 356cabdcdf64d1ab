package systemtest_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/fetchonce/fetchonce"
	"github.com/fetchonce/fetchonce/internal/redistest"
	"github.com/fetchonce/fetchonce/internal/testkit"
)

// An authority makes certificates.
type authority struct {
	t    *testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t}
	made := a.sign(&x509.Certificate{IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign})
	a.cert, a.key = made.Leaf, made.PrivateKey.(*ecdsa.PrivateKey)
	return a
}

// sign returns a certificate and its key. The first certificate is the authority's own.
func (a *authority) sign(c *x509.Certificate) tls.Certificate {
	a.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		a.t.Fatal(err)
	}
	c.SerialNumber = big.NewInt(time.Now().UnixNano())
	c.Subject = pkix.Name{CommonName: "fetchonce test " + c.SerialNumber.String()} // a certificate whose issuer has its own name counts as self-signed
	c.NotBefore, c.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(time.Hour)
	parent, signer := a.cert, a.key
	if parent == nil {
		parent, signer = c, key
	}
	der, err := x509.CreateCertificate(rand.Reader, c, parent, &key.PublicKey, signer)
	if err != nil {
		a.t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		a.t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (a *authority) pool() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.cert)
	return pool
}

// write writes PEM into a new file and returns its name.
func (a *authority) write(kind string, der []byte) string {
	a.t.Helper()
	name := filepath.Join(a.t.TempDir(), "pem")
	if err := os.WriteFile(name, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		a.t.Fatal(err)
	}
	return name
}

// tlsServer starts a server that also listens with TLS, and returns the TLS address.
func (a *authority) tlsServer(t *testing.T, authClients string) (server *redistest.Process, addr string) {
	t.Helper()
	free, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr = free.Addr().String()
	_ = free.Close()
	cert := a.sign(&x509.Certificate{IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}})
	key, err := x509.MarshalPKCS8PrivateKey(cert.PrivateKey)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(addr)
	return redistest.TCPServer(t, "--tls-port", port, "--tls-auth-clients", authClients,
		"--tls-ca-cert-file", a.write("CERTIFICATE", a.cert.Raw),
		"--tls-cert-file", a.write("CERTIFICATE", cert.Certificate[0]),
		"--tls-key-file", a.write("PRIVATE KEY", key)), addr
}

// tlsClient returns a client with a TLS configuration, as a user makes it.
func tlsClient(t *testing.T, server *redistest.Process, addr string, config *tls.Config) *redis.Client {
	t.Helper()
	opt, err := redis.ParseURL(server.URL())
	if err != nil {
		t.Fatal(err)
	}
	opt.Addr, opt.TLSConfig, opt.MaxRetries, opt.DialerRetries = addr, config, -1, 1
	rdb := redis.NewClient(opt)
	t.Cleanup(func() { _ = rdb.Close() })
	return rdb
}

// Connections for commands, for notifications and for tracking all use the client's TLS options.
func TestEveryConnectionUsesTLS(t *testing.T) {
	ours, others := newAuthority(t), newAuthority(t)
	certified := []tls.Certificate{ours.sign(&x509.Certificate{ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})}
	for _, test := range []struct {
		name, authClients string
		certificates      []tls.Certificate
		refused           map[string]*tls.Config
	}{
		{"the server has a certificate", "no", nil, map[string]*tls.Config{
			"another authority":      {RootCAs: others.pool()},
			"the system's authority": {},
		}},
		{"the client has one", "yes", certified, map[string]*tls.Config{
			"no certificate":                  {RootCAs: ours.pool()},
			"another authority's certificate": {RootCAs: ours.pool(), Certificates: []tls.Certificate{others.sign(&x509.Certificate{})}},
			"another server authority":        {RootCAs: others.pool(), Certificates: certified},
			"neither":                         {RootCAs: others.pool()},
		}},
	} {
		t.Run(test.name, func(t *testing.T) {
			server, addr := ours.tlsServer(t, test.authClients)
			config := &tls.Config{RootCAs: ours.pool(), Certificates: test.certificates}
			near := func(opt *options) { opt.Near.Entries = 10 }
			failClosed := func(opt *options) { opt.OnRedisDown = fetchonce.FailClosed }
			r := server.Backend()
			holder := testkit.LoaderOf(t, tlsClient(t, server, addr, config), near, failClosed)
			waiter := testkit.LoaderOf(t, tlsClient(t, server, addr, config), near, failClosed)
			o := testkit.NewOrigin(t)
			here := testkit.Get(t, t.Context(), holder, "k", o)
			c := o.Next()
			there := testkit.Get(t, t.Context(), waiter, "k", o)
			testkit.AwaitWaiters(t, r, "k", 1)
			c.Returns("v")
			here.Want("v")
			there.Want("v")
			o.Want(1)
			r.Until("there is a near entry", func() bool {
				got, err := waiter.Load(t.Context(), "k", func(context.Context, *fetchonce.Fetch[string]) (string, error) { return "lost", nil })
				return err == nil && got.Source == fetchonce.SourceNear
			})
			if err := holder.Set(t.Context(), "k", "new"); err != nil {
				t.Fatal(err)
			}
			r.Until("the change is received", func() bool {
				got, err := waiter.Peek(t.Context(), "k")
				return err == nil && got.Value == "new"
			})
			wantConnections(t, server, addr)

			for name, config := range test.refused {
				l := testkit.LoaderOf(t, tlsClient(t, server, addr, config), near, failClosed)
				_, err := l.Get(t.Context(), "k", o.Fetch)
				if e, ok := errors.AsType[*fetchonce.Error](err); !ok || e.Op != "read" {
					t.Errorf("with %s: Get = %v, want an *Error", name, err)
				}
			}
			o.Want(1)
		})
	}
}

// wantConnections checks that all connections of the user "app" are to addr, and that two of them
// subscribe to notifications and two track keys.
func wantConnections(t *testing.T, server *redistest.Process, addr string) {
	t.Helper()
	subscribed, tracking := 0, 0
	for line := range strings.Lines(server.Client().ClientList(t.Context()).Val()) {
		line = strings.TrimSpace(line) + " " // so that each field ends with a space
		if !strings.Contains(line, " user=app ") {
			continue
		}
		if !strings.Contains(line, " laddr="+addr+" ") {
			t.Errorf("a connection without TLS: %s", line)
		}
		switch {
		case strings.Contains(line, " redir=0 "):
			tracking++
		case strings.Contains(line, " sub=1 "):
			subscribed++
		}
	}
	if subscribed != 2 || tracking != 2 {
		t.Errorf("%d connections are subscribed and %d track keys, want 2 and 2", subscribed, tracking)
	}
}
