package main

import (
	"context"
	"errors"
	"io"

	"github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/mcpserver"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
)

type mcpCmd struct{ meshFlags }

// Run serves until standard input ends.
func (c *mcpCmd) Run(e *verb.Env) error {
	router, done, err := c.dial(e)
	if err != nil {
		return err
	}
	err = mcpserver.New(router, c.adapter(), version).Run(e.Ctx, &mcp.IOTransport{
		Reader: io.NopCloser(e.Stdin), Writer: output{e.Stdout},
	})
	if errors.Is(err, io.EOF) || errors.Is(err, context.Canceled) {
		err = nil
	}
	return errors.Join(err, done())
}

// output is a stream that the server does not close.
type output struct{ io.Writer }

// Close does nothing.
func (output) Close() error { return nil }
