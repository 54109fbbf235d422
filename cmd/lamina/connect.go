package main

import (
	"context"
	"errors"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// connectFlags say how a command proves who it is to a service.
type connectFlags struct {
	APIKey      string `name:"api-key"      env:"LAMINA_API_KEY"         help:"API key to show. Prefer the environment variable: other users of the machine can see command lines."`
	InsecureKey bool   `name:"insecure-key" env:"LAMINA_INSECURE_KEY"    help:"Send the API key to other machines without TLS."`
	CA          string `name:"server-ca"    env:"LAMINA_SERVER_CA"       help:"Certificate authority of the service (PEM file). Default: none, and no TLS; with --client-cert those of the system."`
	ClientCert  string `name:"client-cert"  env:"LAMINA_CLIENT_CERT"     help:"Certificate to show instead of an API key (PEM file)."`
	ClientKey   string `name:"client-key"   env:"LAMINA_CLIENT_CERT_KEY" help:"Private key of the certificate (PEM file)."`
}

// options returns the options of a dialer that shows the key or the certificate.
func (f connectFlags) options() (rpc.DialOptions, error) {
	o := rpc.DialOptions{Secret: f.APIKey, Insecure: f.InsecureKey}
	if (f.ClientCert == "") != (f.ClientKey == "") {
		return o, fault.Field("client-cert", "give --client-cert and --client-key together")
	}
	certs, err := rpc.Files{Cert: f.ClientCert, Key: f.ClientKey, CA: f.CA}.Open(nil)
	if err != nil {
		return o, err
	}
	if certs != nil {
		o.TLS = certs.Client()
	}
	return o, nil
}

// dialer returns a dialer with these options.
func (f connectFlags) dialer() (*rpc.Dialer, error) {
	o, err := f.options()
	if err != nil {
		return nil, err
	}
	return rpc.NewDialer(o), nil
}

// connect calls body with a connection to a service and a context that ends after a limit; 0 means no limit. An error
// of a call becomes the fault that the service has returned.
func (f connectFlags) connect(
	e *verb.Env, addr string, limit time.Duration, body func(context.Context, *grpc.ClientConn) error,
) (err error) {
	dialer, err := f.dialer()
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dialer.Close()) }()
	conn, err := dialer.Dial(addr)
	if err != nil {
		return err
	}
	ctx := e.Ctx
	if limit > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, limit)
		defer cancel()
	}
	return rpc.FromStatus(body(ctx, conn))
}
