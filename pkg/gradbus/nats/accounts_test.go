package nats_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	natsgo "github.com/nats-io/nats.go"

	"github.com/lamina-mesh/lamina/internal/natstest"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
	"github.com/lamina-mesh/lamina/pkg/gradbus/gradbustest"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/journal"
	"github.com/lamina-mesh/lamina/pkg/journal/journaltest"
	journalnats "github.com/lamina-mesh/lamina/pkg/journal/nats"
)

// guarded runs a server with the accounts of a mesh and returns its address and a function that names seeds.
func guarded(t *testing.T) (url string, seed func(account string) string) {
	t.Helper()
	dir := t.TempDir()
	if _, err := nats.WriteAccounts(dir, "127.0.0.1:4222", nats.Accounts()); err != nil {
		t.Fatal(err)
	}
	o, err := server.ProcessConfigFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	o.Port, o.StoreDir = server.RANDOM_PORT, t.TempDir()
	s := natstest.Start(t, o)
	if s.MonitorAddr() != nil || s.ClusterAddr() != nil || s.ProfilerAddr() != nil {
		t.Error("the server listens to more than its client port")
	}
	return s.ClientURL(), func(account string) string { return filepath.Join(dir, account+".nk") }
}

// The permissions of a role suffice for everything that the role does.
func TestAccounts_KeepTheContracts(t *testing.T) {
	t.Run("Shard", func(t *testing.T) {
		gradbustest.Run(t, func(t *testing.T, limit int) gradbus.Bus {
			url, seed := guarded(t)
			b, err := nats.Connect(nats.Config{URL: url, NKey: seed("shard"), MaxBytes: int64(limit), Memory: true})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { b.Close() })
			return b
		})
	})
	t.Run("Router", func(t *testing.T) {
		journaltest.Run(t, func(t *testing.T, limits journal.Limits) journal.Journal {
			url, seed := guarded(t)
			conn, err := nats.Dial(nats.Config{URL: url, NKey: seed("router")})
			if err != nil {
				t.Fatal(err)
			}
			j, err := journalnats.New(conn, journalnats.Config{Memory: true, Limits: limits})
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { j.Close() })
			return j
		})
	})
}

func TestAccounts_RolesAreApart(t *testing.T) {
	url, seed := guarded(t)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	shard, err := nats.Connect(nats.Config{URL: url, NKey: seed("shard"), Memory: true})
	if err != nil {
		t.Fatal(err)
	}
	defer shard.Close()
	e := event(1, 0)
	publish(ctx, t, shard, e)
	if c, err := natsgo.Connect(url); err == nil {
		c.Close()
		t.Error("a client without an nkey is let in")
	}
	stray := filepath.Join(t.TempDir(), "stray.nk")
	if _, err := nats.WriteAccounts(filepath.Dir(stray), "127.0.0.1:0", []nats.Account{{Name: "STRAY"}}); err != nil {
		t.Fatal(err)
	}
	option, err := natsgo.NkeyOptionFromSeed(stray)
	if err != nil {
		t.Fatal(err)
	}
	if c, err := natsgo.Connect(url, option); err == nil {
		c.Close()
		t.Error("a client with a nkey of another server is let in")
	}
	refused := make(chan error, 16)
	if option, err = natsgo.NkeyOptionFromSeed(seed("router")); err != nil {
		t.Fatal(err)
	}
	router, err := natsgo.Connect(url, option,
		natsgo.ErrorHandler(func(_ *natsgo.Conn, _ *natsgo.Subscription, err error) { refused <- err }))
	if err != nil {
		t.Fatal(err)
	}
	defer router.Close()
	for what, try := range map[string]func() error{
		"publishes a gradient": func() error { return router.Publish("lamina.grad.r.0-2.1.0-1.0", []byte("x")) },
		"reads gradients":      func() error { _, err := router.SubscribeSync("lamina.grad.>"); return err },
		"reads everything":     func() error { _, err := router.SubscribeSync(">"); return err },
		"reads the API":        func() error { _, err := router.SubscribeSync("$JS.API.>"); return err },
	} {
		if err := try(); err != nil {
			t.Fatal(err)
		}
		if err := router.Flush(); err != nil {
			t.Fatal(err)
		}
		select {
		case err := <-refused:
			if !strings.Contains(strings.ToLower(err.Error()), "permissions violation") {
				t.Errorf("a router %s: %v", what, err)
			}
		case <-ctx.Done():
			t.Errorf("a router %s, and nobody minds", what)
		}
	}
	stream, err := router.JetStream()
	if err != nil {
		t.Fatal(err)
	}
	if info, err := stream.StreamInfo("LAMINA_GRAD_r"); err == nil {
		t.Errorf("a router sees the stream of a run: %+v", info.Config)
	}
	sub, err := shard.Subscribe(ctx, "r", "0-2", 0)
	if err != nil {
		t.Fatal(err)
	}
	defer sub.Close()
	read(ctx, t, sub, e)
}

func TestWriteAccounts_ReplacesNothingAndHidesSeeds(t *testing.T) {
	dir := t.TempDir()
	files, err := nats.WriteAccounts(dir, "127.0.0.1:4222", nats.Accounts())
	if err != nil {
		t.Fatal(err)
	}
	conf, err := os.ReadFile(filepath.Join(dir, "nats.conf"))
	if err != nil {
		t.Fatal(err)
	}
	for _, file := range files {
		if !strings.HasSuffix(file, ".nk") {
			continue
		}
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", file, info.Mode(), err)
		}
		text, err := os.ReadFile(file)
		if err != nil || strings.Contains(string(conf), strings.TrimSpace(string(text))) {
			t.Errorf("the configuration has the seed of %s, %v", file, err)
		}
	}
	if _, err := nats.WriteAccounts(dir, "127.0.0.1:4222", nats.Accounts()); err == nil {
		t.Error("accounts were replaced")
	}
}

func TestEmbedded_ListensToItsClientPortAlone(t *testing.T) {
	e, err := nats.NewLoopback("")
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if !strings.HasPrefix(e.URL(), "nats://127.0.0.1:") {
		t.Errorf("it listens on %s", e.URL())
	}
	if extra := e.Listeners(); len(extra) != 1 {
		t.Errorf("it listens on %v", extra)
	}
	if extra := natstest.Embedded(t).Listeners(); len(extra) != 0 {
		t.Errorf("a server without ports listens on %v", extra)
	}
}
