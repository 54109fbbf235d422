package app_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/discovery"
	trainerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/trainer/v1"
	"github.com/lamina-mesh/lamina/pkg/gradbus/nats"
	"github.com/lamina-mesh/lamina/pkg/kernel/cpu"
	"github.com/lamina-mesh/lamina/pkg/rpc"
	"github.com/lamina-mesh/lamina/services/shard"
	"github.com/lamina-mesh/lamina/services/trainer"
)

// BenchmarkTrain_Layouts trains nanoGPT's configuration for CPUs over loopback TCP and a NATS server, always with two
// threads in all: in one shard, in two stages, and in two replicas with and without direct exchange. The figure is the
// median step.
func BenchmarkTrain_Layouts(b *testing.B) {
	for _, c := range []struct {
		name             string
		stages, replicas uint32
		direct           string
	}{{"1x1", 1, 1, "auto"}, {"2x1", 2, 1, "auto"}, {"1x2", 1, 2, "auto"}, {"1x2 over NATS", 1, 2, "off"}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				ms := trainOverLoopback(b, c.stages, c.replicas, map[string]any{
					"gradients": map[string]any{"direct": c.direct}})
				b.ReportMetric(ms, "ms/step")
				b.ReportMetric(12*64/ms*1000, "tokens/s")
			}
		})
	}
}

// BenchmarkTrain_Schedules trains eight layers of nanoGPT's width over four stages in one process, with one thread
// each, by every schedule and with layers that are run again in the backward pass. Schedules take turns, and the median
// of LAMINA_BENCH_ROUNDS runs counts. The figure is the median step of a run. Use -benchtime 1x.
func BenchmarkTrain_Schedules(b *testing.B) {
	rounds := 3
	if n, err := strconv.Atoi(os.Getenv("LAMINA_BENCH_ROUNDS")); err == nil {
		rounds = n
	}
	kinds := []struct {
		name   string
		change map[string]any
	}{
		{"1f1b", nil}, {"gpipe", map[string]any{"schedule": "gpipe"}},
		{"interleaved-1f1b", map[string]any{"schedule": "interleaved-1f1b"}},
		{"zero-bubble", map[string]any{"schedule": "zero-bubble"}},
		{"1f1b, recompute", map[string]any{"recompute": "layers"}},
	}
	for b.Loop() {
		took := make([][]float64, len(kinds))
		for range rounds {
			for i, k := range kinds {
				change := map[string]any{"slots": 8, "slot_sequences": 2,
					"model": map[string]any{"architecture": "gpt2", "layers": 8, "width": 128, "heads": 4}}
				maps.Copy(change, k.change)
				took[i] = append(took[i], trainOverLoopback(b, 4, 1, change))
			}
		}
		for i, k := range kinds {
			slices.Sort(took[i])
			ms := took[i][len(took[i])/2]
			b.Logf("%-18s %6.1f ms a step, %5.0f tokens/s, runs %.1f", k.name, ms, 16*64/ms*1000, took[i])
			b.ReportMetric(ms, strings.NewReplacer(", ", "-").Replace(k.name)+"-ms/step")
		}
	}
}

// trainOverLoopback returns the milliseconds of the median step of a run.
func trainOverLoopback(b *testing.B, stages, replicas uint32, change map[string]any) float64 {
	b.Helper()
	ctx, cancel := context.WithTimeout(b.Context(), 10*time.Minute)
	defer cancel()
	events, err := nats.NewLoopback(b.TempDir())
	if err != nil {
		b.Fatal(err)
	}
	bus, err := nats.Connect(nats.Config{URL: events.URL()})
	if err != nil {
		b.Fatal(err)
	}
	dialer, registry := rpc.NewDialer(rpc.DialOptions{}), discovery.NewMemory()
	var ended []<-chan error
	var closers []func() error
	serve := func(s interface{ Register(r grpc.ServiceRegistrar) }) string {
		server := rpc.NewServer(rpc.ServerOptions{Log: slog.New(slog.DiscardHandler)})
		s.Register(server)
		l, err := rpc.Listen("127.0.0.1:0", rpc.ListenOptions{})
		if err != nil {
			b.Fatal(err)
		}
		done := make(chan error, 1)
		go func() { done <- rpc.Serve(ctx, server, l, func() {}, rpc.DrainLimit(time.Second)) }()
		ended = append(ended, done)
		return l.Addr().String()
	}
	shards := int(stages * replicas)
	for i := range shards {
		threads := max(1, 2/shards)
		set := cpu.New(threads)
		closers = append(closers, func() error { set.Close(); return nil })
		at := serve(shard.New(shard.Config{Dialer: dialer, Kernels: set, Threads: threads, Bus: bus, Host: "here"}))
		if _, err := registry.Register(ctx, discovery.Instance{ID: fmt.Sprint(i), Service: "shard", Addr: at,
			Meta: map[string]string{trainer.TrainsMeta: "true"}}); err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	text, out := filepath.Join(dir, "text.txt"), filepath.Join(dir, "out")
	if err := os.WriteFile(text, []byte(strings.Repeat("The quick brown fox jumps over the lazy dog. ", 4000)),
		0o600); err != nil {
		b.Fatal(err)
	}
	t := trainer.New(trainer.Config{Dialer: dialer, Registry: registry, Dir: filepath.Join(dir, "runs"),
		AllowPaths: []string{"/"}, AllowWrite: []string{"/"}})
	running := make(chan error, 1)
	go func() { running <- t.Run(ctx) }()
	ended = append(ended, running)
	conn, err := dialer.Dial(serve(t))
	if err != nil {
		b.Fatal(err)
	}
	manifest := map[string]any{
		"name": "layouts", "data": map[string]any{"text": text}, "vocabulary": map[string]any{"type": "char"},
		"model": map[string]any{"architecture": "gpt2", "layers": 4, "width": 128, "heads": 4},
		"slots": 4, "slot_sequences": 3, "sequence_len": 64, "steps": 40, "checkpoint_every": 1000, "seed": 1,
		"learning_rate": map[string]any{"max": 0.001, "min": 0.0001, "warmup": 5},
	}
	maps.Copy(manifest, change)
	raw, err := json.Marshal(manifest)
	if err != nil {
		b.Fatal(err)
	}
	client := trainerv1.NewTrainerServiceClient(conn)
	resp, err := client.StartRun(ctx, &trainerv1.StartRunRequest{ManifestJson: raw, Stages: stages, Replicas: replicas,
		Out: out})
	if err != nil {
		b.Fatal(err)
	}
	watch, err := client.WatchRun(ctx, &trainerv1.WatchRunRequest{Run: resp.GetRun()})
	if err != nil {
		b.Fatal(err)
	}
	var took []float64
	step, state := uint64(0), &trainerv1.Run{}
	for {
		r, err := watch.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			b.Fatal(err)
		}
		if state = r.GetRun(); state.GetStep() > max(step, 5) { // the first ones warm up
			step, took = state.GetStep(), append(took, state.GetStepMs())
		}
	}
	if state.GetState() != trainerv1.RunState_RUN_STATE_DONE {
		b.Fatalf("ended as %v: %s", state.GetState(), state.GetError())
	}
	cancel()
	for _, done := range ended {
		if err := <-done; err != nil {
			b.Error(err)
		}
	}
	closers = append(closers, dialer.Close, bus.Close, events.Close)
	for _, f := range closers {
		if err := f(); err != nil {
			b.Error(err)
		}
	}
	slices.Sort(took)
	return took[len(took)/2]
}
