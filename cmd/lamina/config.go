package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/config"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/usage"
	"github.com/lamina-mesh/lamina/cmd/lamina/internal/verb"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

type configCmd struct {
	Command []string `arg:"" optional:"" passthrough:"" help:"Command with its flags, such as: router --http 0.0.0.0:8080. Default: up."`
}

// Run prints the configuration that a command would have, as a file that --config reads.
func (c *configCmd) Run(e *verb.Env, file *config.File) error {
	args := c.Command
	if len(args) == 0 {
		args = []string{"up"}
	}
	var inner cli
	parser, err := newParser(&inner, io.Discard, io.Discard, func(int) {}, kong.Resolvers(file))
	if err != nil {
		return err
	}
	parsed, err := parser.Parse(args)
	if err != nil {
		return fault.New(fault.Invalid, "read the flags of lamina %s: %v", strings.Join(args, " "), err)
	}
	return writeConfig(e.Stdout, parsed, file)
}

// writeConfig writes the effective configuration of a command, without secrets.
func writeConfig(w io.Writer, parsed *kong.Context, file *config.File) error {
	var path []string
	for n := parsed.Selected(); n != nil && n.Type != kong.ApplicationNode; n = n.Parent {
		path = append([]string{n.Name}, path...)
	}
	return config.Write(w, path, config.Effective(parsed, file))
}

type helpCmd struct {
	Command []string `arg:"" optional:"" help:"Command to explain, such as: keys create. Default: all of them."`
}

// Run prints what --help of the command prints.
func (c *helpCmd) Run(e *verb.Env) error {
	var inner cli
	shown := false
	parser, err := newParser(&inner, e.Stdout, e.Stderr, func(int) { shown = true })
	if err != nil {
		return err
	}
	if _, err = parser.Parse(append(c.Command, "--help")); !shown && err != nil {
		return fault.New(fault.Invalid, "explain lamina %s: %v", strings.Join(c.Command, " "), err)
	}
	return nil
}

type completionCmd struct {
	Shell string `arg:"" enum:"bash,zsh,fish" help:"bash, zsh or fish."`
}

// Run prints the script.
func (c *completionCmd) Run(e *verb.Env, app *kong.Application) error {
	script, err := usage.Script(c.Shell, app.Name)
	if err != nil {
		return err
	}
	_, err = io.WriteString(e.Stdout, script)
	return err
}

type completeCmd struct {
	Words []string `arg:"" optional:"" passthrough:"" help:"The words of the command line so far, behind --."`
}

// Run prints one candidate per line.
func (c *completeCmd) Run(e *verb.Env, app *kong.Application) error {
	words := c.Words
	if len(words) > 0 && words[0] == "--" {
		words = words[1:]
	}
	for _, word := range usage.Complete(app, words) {
		if _, err := fmt.Fprintln(e.Stdout, word); err != nil {
			return err
		}
	}
	return nil
}

type manCmd struct {
	Dir  string `help:"Folder for the pages of all commands. Default: none, and the page of one command is printed." type:"path"`
	Page string `arg:"" optional:"" help:"Page to print, such as lamina-router. Default: lamina."`
}

// Run writes or prints pages.
func (c *manCmd) Run(e *verb.Env, app *kong.Application) error {
	pages := usage.Pages(app, version)
	if c.Dir == "" {
		name := strings.TrimSuffix(c.Page, ".1")
		if name == "" {
			name = app.Name
		}
		text, ok := pages[name+".1"]
		if !ok {
			return fault.New(fault.NotFound, "find page %q: lamina man lists the commands", c.Page)
		}
		_, err := io.WriteString(e.Stdout, text)
		return err
	}
	if err := os.MkdirAll(c.Dir, 0o755); err != nil {
		return fault.Wrap(fault.Unavailable, err, "make folder of pages")
	}
	var names []string
	for name := range pages {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if err := os.WriteFile(filepath.Join(c.Dir, name), []byte(pages[name]), 0o644); err != nil {
			return fault.Wrap(fault.Unavailable, err, "write page")
		}
	}
	_, err := fmt.Fprintf(e.Stdout, "%d pages in %s\n", len(names), c.Dir)
	return err
}
