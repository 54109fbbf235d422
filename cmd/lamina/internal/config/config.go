// Package config reads settings of the command line from a YAML file and from the environment, and says where each
// value came from.
//
// A key of the file is the name of a flag. At the top it is for every command that has the flag; below the name of a
// command it is for that command alone, and wins there:
//
//	log-level: info
//	router:
//	  http: 0.0.0.0:8080
//	keys:
//	  create:
//	    requests: 60
//
// Every flag also has a variable LAMINA_NAME. A flag of the command line wins over the environment, the environment
// over the file, and the file over the default. Errors name the file, the line and the key.
package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"reflect"
	"slices"
	"strings"

	"github.com/alecthomas/kong"
	"go.yaml.in/yaml/v3"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Limits of a file.
const (
	maxBytes = 1 << 20
	maxDepth = 8
)

// envPrefix begins the names of the environment variables of flags.
const envPrefix = "LAMINA_"

// File holds the settings of a file. It implements kong.Resolver. A nil *File has no settings.
type File struct {
	name string
	root *section
}

// section holds the settings of a command, and those of the commands below it.
type section struct {
	flags    map[string]entry
	commands map[string]*section
	line     int
}

// entry is the value of a key: a string, or a list of values.
type entry struct {
	value any
	line  int
}

// Read reads a file. An empty name means none.
func Read(name string) (*File, error) {
	if name == "" {
		return nil, nil
	}
	f, err := os.Open(name)
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read configuration")
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxBytes+1))
	if err != nil {
		return nil, fault.Wrap(fault.Invalid, err, "read configuration")
	}
	return Parse(name, data)
}

// Parse reads the text of a file, whose name errors begin with.
func Parse(name string, data []byte) (*File, error) {
	f := &File{name: name, root: newSection(0)}
	if len(data) > maxBytes {
		return nil, fault.New(fault.Invalid, "%s: is larger than %d bytes", name, maxBytes)
	}
	d := yaml.NewDecoder(bytes.NewReader(data))
	var doc yaml.Node
	switch err := d.Decode(&doc); {
	case errors.Is(err, io.EOF):
		return f, nil
	case err != nil:
		return nil, fault.New(fault.Invalid, "%s: %s", name, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(&yaml.Node{}); !errors.Is(err, io.EOF) {
		return nil, fault.New(fault.Invalid, "%s: want one document", name)
	}
	if len(doc.Content) != 1 {
		return f, nil
	}
	if n := doc.Content[0]; n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return f, nil // only comments
	}
	return f, f.read(f.root, doc.Content[0], "", 0)
}

func newSection(line int) *section {
	return &section{flags: map[string]entry{}, commands: map[string]*section{}, line: line}
}

// errAt returns an error about a key.
func (f *File) errAt(line int, key, format string, args ...any) error {
	return fault.New(fault.Invalid, "%s:%d: %s: %s", f.name, line, key, fmt.Sprintf(format, args...))
}

// read fills a section with the keys of a mapping.
func (f *File) read(s *section, n *yaml.Node, path string, depth int) error {
	if n.Kind != yaml.MappingNode {
		return fault.New(fault.Invalid, "%s:%d: want keys and values", f.name, n.Line)
	}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k, v := n.Content[i], n.Content[i+1]
		key := strings.TrimPrefix(path+"."+k.Value, ".")
		if k.Kind != yaml.ScalarNode || k.Value == "" {
			return fault.New(fault.Invalid, "%s:%d: want the name of a flag or command", f.name, k.Line)
		}
		_, isFlag := s.flags[k.Value]
		_, isCommand := s.commands[k.Value]
		switch v.Kind {
		case yaml.MappingNode:
			if isCommand {
				return f.errAt(k.Line, key, "is given twice")
			}
			if depth >= maxDepth {
				return f.errAt(k.Line, key, "is nested too deeply")
			}
			sub := newSection(k.Line)
			s.commands[k.Value] = sub
			if err := f.read(sub, v, key, depth+1); err != nil {
				return err
			}
			continue
		case yaml.ScalarNode, yaml.SequenceNode:
		default:
			return f.errAt(k.Line, key, "anchors and aliases are not supported")
		}
		if isFlag {
			return f.errAt(k.Line, key, "is given twice")
		}
		value, err := f.value(v, key)
		if err != nil {
			return err
		}
		s.flags[k.Value] = entry{value, k.Line}
	}
	return nil
}

// value returns a scalar as it is written, and a list of scalars as a list.
func (f *File) value(n *yaml.Node, key string) (any, error) {
	if n.Kind == yaml.ScalarNode {
		if n.Tag == "!!null" {
			return nil, f.errAt(n.Line, key, "want a value")
		}
		return n.Value, nil
	}
	list := []any{}
	for _, item := range n.Content {
		if item.Kind != yaml.ScalarNode || item.Tag == "!!null" {
			return nil, f.errAt(item.Line, key, "want a list of plain values")
		}
		list = append(list, item.Value)
	}
	return list, nil
}

// Validate checks that each key is a flag or a command, and each value one that its flag takes. It implements
// kong.Resolver; but kong calls it after Resolve, so the program calls it first, for errors that have the whole key.
func (f *File) Validate(app *kong.Application) error {
	if f == nil {
		return nil
	}
	return f.validate(f.root, app.Node, "")
}

func (f *File) validate(s *section, n *kong.Node, path string) error {
	flags := flagsBelow(n)
	for _, name := range sortedByLine(s.flags) {
		e, key := s.flags[name], strings.TrimPrefix(path+"."+name, ".")
		found := flags[name]
		if len(found) == 0 {
			return f.errAt(e.line, key, "there is no such flag%s", suggest(name, flags))
		}
		var first error
		for _, flag := range found { // commands may give a flag different types
			err := accepts(flag, e.value)
			if err == nil {
				first = nil
				break
			}
			if first == nil {
				first = err
			}
		}
		if first != nil {
			return f.errAt(e.line, key, "%v", first)
		}
	}
	commands := map[string]*kong.Node{}
	for _, c := range n.Children {
		commands[c.Name] = c
	}
	for name, sub := range s.commands {
		key := strings.TrimPrefix(path+"."+name, ".")
		c := commands[name]
		if c == nil {
			return f.errAt(sub.line, key, "there is no such command%s", suggest(name, commands))
		}
		if err := f.validate(sub, c, key); err != nil {
			return err
		}
	}
	return nil
}

// flagsBelow returns the flags of a node, of all commands below it and of those around it, by name.
func flagsBelow(n *kong.Node) map[string][]*kong.Flag {
	out := map[string][]*kong.Flag{}
	var walk func(*kong.Node)
	walk = func(n *kong.Node) {
		for _, flag := range n.Flags {
			if flag.Name != "help" && flag.Name != "config" {
				out[flag.Name] = append(out[flag.Name], flag)
			}
		}
		for _, c := range n.Children {
			walk(c)
		}
	}
	walk(n)
	for n = n.Parent; n != nil; n = n.Parent { // such as --log-level
		for _, flag := range n.Flags {
			if flag.Name != "help" && flag.Name != "config" {
				out[flag.Name] = append(out[flag.Name], flag)
			}
		}
	}
	return out
}

func sortedByLine(flags map[string]entry) []string {
	names := make([]string, 0, len(flags))
	for name := range flags {
		names = append(names, name)
	}
	slices.SortFunc(names, func(a, b string) int { return flags[a].line - flags[b].line })
	return names
}

// accepts returns an error unless a flag can have a value.
func accepts(flag *kong.Flag, value any) error {
	target := reflect.New(flag.Target.Type()).Elem()
	if target.Kind() == reflect.Pointer {
		target.Set(reflect.New(target.Type().Elem()))
	}
	if _, list := value.([]any); list && !flag.IsSlice() {
		return errors.New("want one value, got a list")
	}
	token := kong.Scan().PushTyped(typed(flag, value), kong.FlagValueToken)
	if err := flag.Mapper.Decode(&kong.DecodeContext{Value: flag.Value, Scan: token}, target); err != nil {
		return err
	}
	if text, ok := value.(string); ok && flag.Enum != "" && !flag.EnumMap()[text] {
		return fmt.Errorf("want one of %s, got %q", strings.Join(flag.EnumSlice(), ", "), text)
	}
	return nil
}

// typed returns a value in the form in which the flag decodes it: the items of a list that are no strings as they are
// in YAML.
func typed(flag *kong.Flag, value any) any {
	list, ok := value.([]any)
	if !ok || !flag.IsSlice() || flag.Target.Type().Elem().Kind() == reflect.String {
		return value
	}
	out := make([]any, len(list))
	for i, item := range list {
		var v any
		if err := yaml.Unmarshal([]byte(fmt.Sprint(item)), &v); err != nil {
			v = item
		}
		out[i] = v
	}
	return out
}

// Resolve returns the value of a flag, or nil if the file has none or the environment has one. It implements
// kong.Resolver.
func (f *File) Resolve(c *kong.Context, _ *kong.Path, flag *kong.Flag) (any, error) {
	if _, set := fromEnv(flag); set || f == nil {
		return nil, nil
	}
	e, ok := f.find(c.Selected(), flag.Name)
	if !ok {
		return nil, nil
	}
	if err := accepts(flag, e.value); err != nil { // a flag of another command with this name takes it
		return nil, f.errAt(e.line, flag.Name, "%v", err)
	}
	return typed(flag, e.value), nil
}

// find returns the entry of a flag in the section of a command or the closest one around it.
func (f *File) find(n *kong.Node, flag string) (entry, bool) {
	if f == nil || flag == "help" || flag == "config" {
		return entry{}, false
	}
	var path []string
	for ; n != nil && n.Type != kong.ApplicationNode; n = n.Parent {
		path = append([]string{n.Name}, path...)
	}
	best, found := f.root.flags[flag]
	s := f.root
	for _, name := range path {
		if s = s.commands[name]; s == nil {
			break
		}
		if e, ok := s.flags[flag]; ok {
			best, found = e, true
		}
	}
	return best, found
}

// fromEnv returns the name of the variable that sets a flag. An empty variable sets none.
func fromEnv(flag *kong.Flag) (string, bool) {
	for _, name := range flag.Tag.Envs {
		if os.Getenv(name) != "" {
			return name, true
		}
	}
	return "", false
}

// Environment gives every flag without a variable the one that is called LAMINA_ and its name. Variables that are empty
// count as not set, which is how scripts and container files leave a setting out.
func Environment() kong.Option {
	return kong.PostBuild(func(k *kong.Kong) error {
		var walk func(*kong.Node)
		walk = func(n *kong.Node) {
			for _, flag := range n.Flags {
				if flag.Name == "help" {
					continue
				}
				if len(flag.Tag.Envs) == 0 {
					name := envPrefix + strings.ToUpper(strings.ReplaceAll(flag.Name, "-", "_"))
					flag.Envs, flag.Tag.Envs = []string{name}, []string{name}
				}
				// The flag goes on naming its variables (Envs), and is not set by those that are empty.
				flag.Tag.Envs = slices.DeleteFunc(slices.Clone(flag.Tag.Envs), func(name string) bool {
					text, set := os.LookupEnv(name)
					return set && text == ""
				})
			}
			for _, c := range n.Children {
				walk(c)
			}
		}
		walk(k.Model.Node)
		return nil
	})
}

// FileOf returns the name of the configuration file: that of --config, or else of LAMINA_CONFIG, or else none.
func FileOf(args []string) string {
	name := os.Getenv(envPrefix + "CONFIG")
	for i, arg := range args {
		if arg == "--" {
			break
		}
		if value, ok := strings.CutPrefix(arg, "--config="); ok {
			name = value
		} else if arg == "--config" && i+1 < len(args) {
			name = args[i+1]
		}
	}
	return name
}

// suggest returns ": did you mean NAME?" if a known name is close.
func suggest[V any](name string, known map[string]V) string {
	best, least := "", 3
	for other := range known {
		if d := distance(name, other); d < least || d == least && best != "" && other < best {
			best, least = other, d
		}
	}
	if best == "" {
		return ""
	}
	return fmt.Sprintf(": did you mean %s?", best)
}

// distance is the number of characters to insert, remove or replace to get from one name to another (Levenshtein).
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		last := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := last
			if a[i] != b[j] {
				cost = 1 + min(last, row[j], row[j+1])
			}
			last, row[j+1] = row[j+1], cost
		}
	}
	return row[len(b)]
}
