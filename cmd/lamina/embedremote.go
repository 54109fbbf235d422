package main

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"unicode/utf8"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
	shardv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/shard/v1"
	"github.com/lamina-mesh/lamina/pkg/rpc"
)

// embedTexts is the number of texts in one request to a router.
const embedTexts = 64

// remote prints the embeddings that a router computes.
func (c *embedCmd) remote(e *verb.Env) error {
	return c.connect(e, c.Router, 0, func(_ context.Context, conn *grpc.ClientConn) error {
		return c.ask(e, routerv1.NewRouterServiceClient(conn))
	})
}

// pooling returns what the flags say about the pooling; nil leaves all to the model.
func (c *embedCmd) pooling() *shardv1.Pooling {
	kinds := map[string]shardv1.PoolKind{
		"mean": shardv1.PoolKind_POOL_KIND_MEAN, "first": shardv1.PoolKind_POOL_KIND_FIRST,
		"last": shardv1.PoolKind_POOL_KIND_LAST,
	}
	return &shardv1.Pooling{Kind: kinds[c.Pooling], Normalize: c.Normalize}
}

func (c *embedCmd) ask(e *verb.Env, router routerv1.RouterServiceClient) error {
	in := newLines(e.Stdin)
	all := [][]float32{}
	r := &routerv1.EmbedRequest{Model: c.Model, Pooling: c.pooling(), Truncate: true}
	send := func() error {
		if len(r.GetInputs()) == 0 {
			return nil
		}
		resp, err := router.Embed(e.Ctx, r)
		if err != nil {
			return rpc.FromStatus(err)
		}
		r.Inputs = nil
		for _, embedding := range resp.GetEmbeddings() {
			if c.Format == "json" {
				all = append(all, embedding.GetValues())
			} else if err := verb.PrintJSON(e, embedding.GetValues()); err != nil {
				return err
			}
		}
		return nil
	}
	for n := 1; ; n++ {
		line, err := in.next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return fault.Wrap(fault.Invalid, err, "read line %d of standard input", n)
		}
		if line == "" {
			continue
		}
		var text *string
		if err := json.Unmarshal([]byte(line), &text); err != nil || text == nil || !utf8.ValidString(line) {
			return fault.New(fault.Invalid, "line %d of standard input: want a JSON string", n)
		}
		r.Inputs = append(r.Inputs, &routerv1.EmbedInput{Input: &routerv1.EmbedInput_Text{Text: *text}})
		if len(r.GetInputs()) == embedTexts {
			if err := send(); err != nil {
				return err
			}
		}
	}
	if err := send(); err != nil {
		return err
	}
	if c.Format != "json" {
		return nil
	}
	return verb.PrintJSON(e, struct {
		Embeddings [][]float32 `json:"embeddings"`
	}{all})
}
