// Package configfile reads files that people write, in YAML or JSON, and says in plain words what is wrong with them:
// the setting, its line, what is wanted and what is there. Decoders alone name the types of Go.
//
// A file is one value. What it leaves out stays as it is in the value that it is read into, and settings that do not
// exist are errors. All errors are Invalid.
package configfile

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Kind says what a value of a type is, in words that fit behind "want".
func Kind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return Kind(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number in range"
	case reflect.Int, reflect.Int8, reflect.Int16, reflect.Int32, reflect.Int64,
		reflect.Uint, reflect.Uint8, reflect.Uint16, reflect.Uint32, reflect.Uint64:
		return "a whole number in range"
	case reflect.Slice, reflect.Array:
		return "a list"
	}
	return "an object"
}

// JSON reads text into the value that into points to.
func JSON(text []byte, into any) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, end := d.Token(); errors.Is(end, io.EOF) {
			return nil
		}
		return fault.New(fault.Invalid, "line %d: want one value and nothing after it", lineAt(text, d.InputOffset()))
	}
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return fault.New(fault.Invalid, "line %d: the file ends too early", lineAt(text, int64(len(text))))
	case errors.As(err, &syntax):
		return fault.New(fault.Invalid, "line %d: %v", lineAt(text, syntax.Offset), err)
	case errors.As(err, &kind):
		return wrong(kind.Field, lineAt(text, kind.Offset), Kind(kind.Type), got(kind.Value))
	}
	if name, ok := strings.CutPrefix(err.Error(), "json: unknown field "); ok {
		if name, err := strconv.Unquote(name); err == nil {
			return fault.Field(name, "%sthere is no such setting", only(text, name))
		}
	}
	return fault.New(fault.Invalid, "%s", strings.TrimPrefix(err.Error(), "json: "))
}

// only returns the line of a key in JSON, if it is there once.
func only(text []byte, key string) string {
	found := regexp.MustCompile(regexp.QuoteMeta(strconv.Quote(key))+`\s*:`).FindAllIndex(text, 2)
	if len(found) != 1 {
		return ""
	}
	return fmt.Sprintf("line %d: ", lineAt(text, int64(found[0][0])))
}

func lineAt(text []byte, offset int64) int {
	return 1 + bytes.Count(text[:min(offset, int64(len(text)))], []byte("\n"))
}

// got says what encoding/json calls a value, such as "number 1.5".
func got(value string) string {
	switch kind, rest, more := strings.Cut(value, " "); {
	case more:
		return fmt.Sprintf("the %s %s", kind, rest)
	case kind == "array":
		return "a list"
	case kind == "bool":
		return "true or false"
	case kind == "object":
		return "an object"
	}
	return "a " + value
}

func wrong(field string, line int, want, got string) error {
	return fault.Field(field, "line %d: want %s, got %s", line, want, got)
}

// YAML reads text into the value that into points to. An empty text changes nothing.
func YAML(text []byte, into any) error {
	d := yaml.NewDecoder(bytes.NewReader(text))
	d.KnownFields(true)
	switch err := d.Decode(into); {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		var doc yaml.Node
		if yaml.Unmarshal(text, &doc) == nil && len(doc.Content) == 1 {
			if found := check(doc.Content[0], reflect.TypeOf(into).Elem(), ""); found != nil {
				return found
			}
		}
		var types *yaml.TypeError
		if errors.As(err, &types) {
			return fault.New(fault.Invalid, "%s", types.Errors[0])
		}
		return fault.New(fault.Invalid, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if err := d.Decode(new(yaml.Node)); !errors.Is(err, io.EOF) {
		return fault.New(fault.Invalid, "want one document")
	}
	return nil
}

// check returns what makes a node no value of a type; nil if it finds nothing. It does not follow aliases.
func check(n *yaml.Node, t reflect.Type, path string) error {
	switch {
	case n.Kind == yaml.AliasNode || n.ShortTag() == "!!null":
		return nil
	case reflect.PointerTo(t).Implements(reflect.TypeFor[yaml.Unmarshaler]()):
		if err := n.Decode(reflect.New(t).Interface()); err != nil {
			return fault.Field(path, "%s", strings.TrimPrefix(err.Error(), "yaml: "))
		}
		return nil
	case t.Kind() == reflect.Pointer:
		return check(n, t.Elem(), path)
	}
	items, pairs := n.Kind == yaml.SequenceNode, n.Kind == yaml.MappingNode
	switch t.Kind() {
	case reflect.Struct, reflect.Map:
		if !pairs {
			return wrong(path, n.Line, "a mapping (name: value)", found(n))
		}
		return checkPairs(n, t, path)
	case reflect.Slice:
		if !items {
			return wrong(path, n.Line, Kind(t), found(n))
		}
		for i, item := range n.Content {
			if err := check(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i)); err != nil {
				return err
			}
		}
		return nil
	}
	if items || pairs || n.Decode(reflect.New(t).Interface()) != nil {
		want := Kind(t)
		if t == reflect.TypeFor[time.Duration]() {
			want = "a time such as 10s"
		}
		return wrong(path, n.Line, want, found(n))
	}
	return nil
}

// checkPairs is check for a mapping, whose keys are the fields of a struct or any.
func checkPairs(n *yaml.Node, t reflect.Type, path string) error {
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		if key.Tag == "!!merge" {
			continue
		}
		at := strings.TrimPrefix(path+"."+key.Value, ".")
		of := reflect.Type(nil)
		if t.Kind() == reflect.Map {
			of = t.Elem()
		} else {
			var names []string
			for f := range t.Fields() {
				name, _, _ := strings.Cut(f.Tag.Get("yaml"), ",")
				names = append(names, name)
				if name == key.Value {
					of = f.Type
				}
			}
			if of == nil {
				slices.Sort(names)
				return fault.Field(at, "line %d: there is no such setting: want one of %s", key.Line,
					strings.Join(names, ", "))
			}
		}
		if err := check(value, of, at); err != nil {
			return err
		}
	}
	return nil
}

// found says what a node is.
func found(n *yaml.Node) string {
	switch n.Kind {
	case yaml.SequenceNode:
		return "a list"
	case yaml.MappingNode:
		return "a mapping"
	}
	return fmt.Sprintf("%.64q", n.Value)
}
