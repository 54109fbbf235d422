package nats

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/nats-io/nkeys"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Account is an account of a NATS server with one user. Accounts share no subjects and no streams, so that a shard
// cannot read requests and a router cannot write gradients, whatever permissions they have.
type Account struct {
	Name      string   // of the account; in lower case, of the seed's file
	JetStream bool     // the account may store streams
	Publish   []string // subjects that the user may publish to; empty for all
	Subscribe []string // and subscribe to
}

// Accounts returns the accounts of a mesh: of shards, of routers, and of whoever looks after the server.
func Accounts() []Account {
	return []Account{
		{Name: "SHARD", JetStream: true, Publish: append(jetStream(), "lamina.grad.>"), Subscribe: inboxes()},
		{Name: "ROUTER", JetStream: true, Publish: append(jetStream(), "lamina.request.*"), Subscribe: inboxes()},
		{Name: "SYS"},
	}
}

// jetStream are the subjects of JetStream's API that the bus and the journal use.
func jetStream() []string {
	return []string{
		"$JS.API.INFO", "$JS.API.STREAM.CREATE.*", "$JS.API.STREAM.UPDATE.*", "$JS.API.STREAM.INFO.*",
		"$JS.API.STREAM.PURGE.*", "$JS.API.STREAM.DELETE.*", "$JS.API.STREAM.NAMES", "$JS.API.STREAM.LIST",
		"$JS.API.STREAM.MSG.GET.*", "$JS.API.DIRECT.GET.>", "$JS.API.CONSUMER.CREATE.>", "$JS.API.CONSUMER.INFO.*.*",
		"$JS.API.CONSUMER.DELETE.*.*", "$JS.API.CONSUMER.MSG.NEXT.*.*", "$JS.ACK.>", "$JS.FC.>",
	}
}

func inboxes() []string { return []string{"_INBOX.>"} }

// WriteAccounts makes an nkey for each account and writes a configuration of the server, nats.conf, and a seed for each
// account, NAME.nk, to a folder. A seed is a secret: its file can be read by its owner alone. Nothing is replaced.
func WriteAccounts(dir, listen string, accounts []Account) (files []string, err error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fault.Wrap(fault.Unavailable, err, "make folder of NATS accounts")
	}
	var conf strings.Builder
	fmt.Fprintf(&conf, `# Accounts of a mesh, made by lamina nkeys init. The server listens for clients alone: there is no monitoring
# port, no cluster and no leaf node. Add a block tls { cert_file, key_file, ca_file } where others can reach it.
listen: %q
jetstream { store_dir: "jetstream" }
system_account: SYS
accounts {
`, listen)
	for _, a := range accounts {
		user, err := nkeys.CreateUser()
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "make an nkey")
		}
		public, err := user.PublicKey()
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "make an nkey")
		}
		seed, err := user.Seed()
		if err != nil {
			return nil, fault.Wrap(fault.Internal, err, "make an nkey")
		}
		name := filepath.Join(dir, strings.ToLower(a.Name)+".nk")
		if err := writeNew(name, append(seed, '\n'), 0o600); err != nil {
			return nil, err
		}
		user.Wipe()
		files = append(files, name)
		conf.WriteString(a.config(public))
	}
	conf.WriteString("}\n")
	name := filepath.Join(dir, "nats.conf")
	return append(files, name), writeNew(name, []byte(conf.String()), 0o644)
}

// config returns the account in the language of the server's configuration.
func (a Account) config(public string) string {
	stream, permissions := "", ""
	if a.JetStream {
		stream = "    jetstream: enabled\n"
	}
	if len(a.Publish) > 0 {
		permissions = fmt.Sprintf(",\n      permissions: {\n        publish: { allow: [%s] }\n        subscribe: { allow: [%s] }\n      }",
			list(a.Publish), list(a.Subscribe))
	}
	return fmt.Sprintf("  %s {\n%s    users: [{ nkey: %s%s\n    }]\n  }\n", a.Name, stream, public, permissions)
}

func list(subjects []string) string {
	quoted := make([]string, len(subjects))
	for i, s := range subjects {
		quoted[i] = fmt.Sprintf("%q", s)
	}
	return strings.Join(quoted, ", ")
}

func writeNew(path string, text []byte, mode fs.FileMode) error {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, mode)
	if errors.Is(err, fs.ErrExist) {
		return fault.New(fault.AlreadyExists, "write %s: it exists: choose another folder", path)
	}
	if err == nil {
		_, err = f.Write(text)
		err = errors.Join(err, f.Sync(), f.Close())
	}
	if err != nil {
		return fault.Wrap(fault.Unavailable, err, "write %s", path)
	}
	return nil
}
