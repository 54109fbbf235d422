package mcptools

import (
	"context"
	"errors"
	"sync"

	"github.com/modelcontextprotocol/go-sdk/mcp"
)

// program is a server that is started here, with all that it starts. Programs are often scripts that start the server
// proper, which would outlive them: the SDK ends the program alone.
type program struct {
	mcp.CommandTransport
	group group
	ended sync.Once
}

// Connect starts the program.
func (p *program) Connect(ctx context.Context) (mcp.Connection, error) {
	c, err := p.CommandTransport.Connect(ctx)
	if err != nil {
		return nil, err
	}
	if err := p.group.add(p.Command.Process); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// kill ends the program and all that it has started, once. A server with an address has a nil program.
func (p *program) kill() {
	if p != nil && p.Command.Process != nil {
		p.ended.Do(p.group.kill)
	}
}
