package integration_test

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/cmd/lamina/app"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

// narrow is a gRPC client with one stream that has room for a few bytes. Its connection lives: it answers settings
// and pings.
type narrow struct {
	conn    net.Conn
	mu      sync.Mutex // guards writes of frames
	frames  *http2.Framer
	ended   chan struct{}
	trailer string // grpc-status, once ended is closed
}

// window is the room of a narrow client's stream, in bytes.
const window = 256

func newNarrow(addr string, r *routerv1.GenerateRequest) (*narrow, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := &narrow{conn: conn, frames: http2.NewFramer(conn, conn), ended: make(chan struct{})}
	c.frames.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	if err := c.request(addr, r); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	go c.read()
	return c, nil
}

// request sends the preface and a call of Generate.
func (c *narrow) request(addr string, r *routerv1.GenerateRequest) error {
	message, err := proto.Marshal(r)
	if err != nil {
		return err
	}
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "http"}, {":authority", addr},
		{":path", routerv1.RouterService_Generate_FullMethodName}, {"content-type", "application/grpc"},
		{"te", "trailers"}} {
		if err := enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]}); err != nil {
			return err
		}
	}
	body := append(binary.BigEndian.AppendUint32([]byte{0}, uint32(len(message))), message...)
	_, err = io.WriteString(c.conn, http2.ClientPreface)
	return errors.Join(err,
		c.frames.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: window}),
		c.frames.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: block.Bytes(), EndHeaders: true}),
		c.frames.WriteData(1, true, body))
}

// read reads frames until the stream or the connection ends.
func (c *narrow) read() {
	defer close(c.ended)
	for {
		f, err := c.frames.ReadFrame()
		if err != nil {
			return
		}
		c.mu.Lock()
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				err = c.frames.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				err = c.frames.WritePing(true, f.Data)
			}
		case *http2.MetaHeadersFrame:
			for _, h := range f.Fields {
				if h.Name == "grpc-status" {
					c.trailer = h.Value
				}
			}
			if f.StreamEnded() {
				err = io.EOF
			}
		}
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// widen gives the stream and its connection room for the rest of the answer.
func (c *narrow) widen() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return errors.Join(c.frames.WriteWindowUpdate(0, 1<<24), c.frames.WriteWindowUpdate(1, 1<<24))
}

// S10: clients of the gRPC API that read nothing, although their connections live. Each stream is cut when the read
// limit is over, and a client that reads again is told so.
func TestPromise_S10_StalledStreamsAreCut(t *testing.T) {
	limit := time.Duration(pickInt(3, 30)) * time.Second
	l := startLocal(t, app.MeshConfig{Stages: 2, GRPC: "127.0.0.1:0", KVPositions: 65536,
		Scheduling: app.Scheduling{CacheIdle: 200 * time.Millisecond, ReadLimit: limit, Queue: 512}})
	before := settled(t)
	clients := make([]*narrow, pickInt(8, 64))
	begin := time.Now()
	for i := range clients {
		// gRPC itself holds 64 KiB of a stream, so an answer has to be longer than the context.
		r := seeded(prompts[i%len(prompts)], 2000, uint64(i))
		r.TopLogprobs, r.IgnoreEnd = 20, true
		r.ContextPolicy = &routerv1.ContextPolicy{Mode: routerv1.ContextMode_CONTEXT_MODE_SLIDE}
		var err error
		if clients[i], err = newNarrow(l.mesh.GRPCAddr(), r); err != nil {
			t.Fatal(err)
		}
	}
	most := uint32(0)
	var freed time.Duration
	if !poll(50*time.Millisecond, 4*limit+2*time.Minute, func() bool {
		sessions, pages := l.held()
		most, freed = max(most, sessions), time.Since(begin)
		return int(most) >= len(clients) && freed > limit && sessions == 0 && pages == 0
	}) {
		t.Fatalf("stalled streams still hold sessions after %v; %d were held at most, want %d", freed, most, len(clients))
	}
	t.Logf("%d streams held up to %d sessions on two stages, and none after %v", len(clients), most,
		freed.Round(time.Millisecond))
	cut := fmt.Sprint(uint32(codes.DeadlineExceeded))
	for i, c := range clients {
		if err := c.widen(); err != nil {
			t.Errorf("stream %d: %v", i, err)
		}
		select {
		case <-c.ended:
			if c.trailer != cut {
				t.Errorf("stream %d ends with status %q, want %s", i, c.trailer, cut)
			}
		case <-time.After(time.Minute):
			t.Errorf("stream %d does not end", i)
		}
		if err := c.conn.Close(); err != nil {
			t.Error(err)
		}
		<-c.ended
	}
	awaitBaseline(t, l, before)
}
