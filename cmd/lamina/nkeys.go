package main

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/discovery/consul"
	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
)

// natsFlags say how a service proves who it is to a NATS server.
type natsFlags struct {
	NATSToken string `name:"nats-token" env:"LAMINA_NATS_TOKEN" help:"Token for NATS."`
	NATSNKey  string `name:"nats-nkey"  env:"LAMINA_NATS_NKEY"  help:"File with the seed of an nkey for NATS, as lamina nkeys init makes it."`
	NATSCA    string `name:"nats-ca"    env:"LAMINA_NATS_CA"    help:"Certificate authority of the NATS server (PEM file). Default: those of the system."`
}

func (f natsFlags) config(url string) nats.Config {
	return nats.Config{URL: url, Token: f.NATSToken, NKey: f.NATSNKey, CA: f.NATSCA}
}

// nkeysGroup is the table of commands for what services need to use NATS and Consul.
type nkeysGroup struct {
	Init nkeysInitCmd `cmd:"" help:"Write accounts, nkeys and permissions for a NATS server, and ACL policies for Consul, as files."`
}

type nkeysInitCmd struct {
	Dir    string `help:"Folder for the files." default:"nats" type:"path"`
	Listen string `help:"Client address of the NATS server." default:"127.0.0.1:4222"`
}

// Run writes the files.
func (c *nkeysInitCmd) Run(e *verb.Env) error {
	files, err := nats.WriteAccounts(c.Dir, c.Listen, nats.Accounts())
	if err != nil {
		return err
	}
	dir := filepath.Join(c.Dir, "consul")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fault.Wrap(fault.Unavailable, err, "make folder of policies")
	}
	policies := consul.Policies()
	for _, kind := range slices.Sorted(maps.Keys(policies)) {
		name := filepath.Join(dir, kind+".hcl")
		f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o644)
		if errors.Is(err, fs.ErrExist) {
			return fault.New(fault.AlreadyExists, "write %s: it exists: choose another folder", name)
		}
		if err == nil {
			_, err = f.WriteString(policies[kind])
			err = errors.Join(err, f.Close())
		}
		if err != nil {
			return fault.Wrap(fault.Unavailable, err, "write %s", name)
		}
		files = append(files, name)
	}
	for _, name := range files {
		fmt.Fprintln(e.Stdout, name)
	}
	fmt.Fprintf(e.Stdout, "\nStart the server with nats-server -c %s, and services with --nats-nkey.\n",
		filepath.Join(c.Dir, "nats.conf"))
	return nil
}
