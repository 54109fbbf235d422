package main

import (
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"
)

// manuals returns the texts that people read to use Lamina, by their paths. The log and the design records tell of
// the past, so what they name may be gone.
func manuals(t *testing.T) map[string]string {
	t.Helper()
	var paths []string
	for _, pattern := range []string{"README.md", "CONTRIBUTING.md", "docs/*.md", "examples/*.md", "deploy/*.md"} {
		found, err := filepath.Glob(filepath.Join("..", "..", pattern))
		if err != nil {
			t.Fatal(err)
		}
		paths = append(paths, found...)
	}
	texts := map[string]string{}
	for _, path := range paths {
		if filepath.Base(path) == "LOG.md" {
			continue
		}
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		texts[strings.TrimPrefix(filepath.ToSlash(path), "../../")] = string(text)
	}
	return texts
}

// shown returns the command lines of lamina in the examples of a manual, which are fenced or indented by four
// spaces, and in its inline code, without the name of the program.
func shown(text string) []string {
	var lines []string
	fenced, continued := false, false
	for line := range strings.Lines(text) {
		line = strings.TrimRight(line, "\n")
		switch code, indented := strings.CutPrefix(line, "    "); {
		case strings.HasPrefix(line, "```"):
			fenced = !fenced
			continue
		case continued:
			lines[len(lines)-1] += strings.TrimSpace(line)
		case fenced:
			lines = append(lines, line)
		case indented:
			lines = append(lines, code)
		default:
			for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(line, -1) {
				lines = append(lines, m[1])
			}
			continue
		}
		last := &lines[len(lines)-1]
		*last, continued = strings.CutSuffix(*last, "\\")
	}
	var out []string
	for _, line := range lines {
		line, _, _ = strings.Cut(line, "  #") // a comment
		line, _, _ = strings.Cut(line, " # ")
		line = strings.NewReplacer("&&", "\n", "| ", "\n", ";", "\n", "$(", "\n").Replace(line)
		for part := range strings.SplitSeq(line, "\n") {
			part = strings.TrimPrefix(strings.TrimSpace(part), "$ ")
			part = strings.TrimPrefix(strings.TrimPrefix(part, "./"), "bin/")
			if rest, ok := strings.CutPrefix(part, "lamina "); ok {
				out = append(out, rest)
			}
		}
	}
	return out
}

// words splits a command line as a shell does, up to a redirection. Brackets around what is optional are left out, and
// so is an ellipsis that is not the value of a flag.
func words(line string) []string {
	var out []string
	line = strings.NewReplacer("[", "", "]", "").Replace(line)
	for _, m := range regexp.MustCompile(`(?:'[^']*'|"[^"]*"|[^\s'"])+`).FindAllString(line, -1) {
		switch {
		case strings.ContainsAny(m[:1], "<>)"):
			return out
		case (m == "..." || m == "…") && !strings.HasPrefix(out[len(out)-1], "--"):
		default:
			out = append(out, strings.NewReplacer("'", "", `"`, "").Replace(m))
		}
	}
	return out
}

// TestDocs_CommandsAreAccepted parses every command line of lamina that a manual shows.
func TestDocs_CommandsAreAccepted(t *testing.T) {
	var c cli
	parser, err := newParser(&c, io.Discard, io.Discard, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	// Inline code may name a command without its arguments or a flag without its value, or have a letter for a number.
	// A flag or a word that does not exist is wrong there too.
	abridged := regexp.MustCompile(`^missing (flags|positional)|^expected |but got "(EOL|N|B)"|argument COMMAND$`)
	count := 0
	for path, text := range manuals(t) {
		for _, line := range shown(text) {
			count++
			args := words(line)
			eachFlag(parser.Model.Node, func(f *kong.Flag) { f.Set = false }) // what the line before has set
			if i := slices.IndexFunc(args, func(s string) bool { return strings.Contains(s, "|") }); i >= 0 {
				checkAlternatives(t, parser.Model.Node, path, args[:i], strings.Split(args[i], "|"))
			} else if _, err = parser.Parse(args); err != nil && !abridged.MatchString(err.Error()) {
				t.Errorf("%s: lamina %s: %v", path, line, err)
			}
		}
	}
	if count < 150 {
		t.Errorf("%d command lines were found: the manuals are read wrongly", count)
	}
}

// checkAlternatives checks a line such as "runs list|show".
func checkAlternatives(t *testing.T, node *kong.Node, path string, parents, names []string) {
	t.Helper()
	for _, name := range append(slices.Clone(parents), names...) {
		i := slices.IndexFunc(node.Children, func(n *kong.Node) bool { return n.Name == name })
		if i < 0 {
			t.Errorf("%s: lamina %s: there is no command %s", path, strings.Join(parents, " "), name)
			return
		}
		if slices.Contains(parents, name) {
			node = node.Children[i]
		}
	}
}

// eachFlag calls f for each flag of a command and of those below it.
func eachFlag(n *kong.Node, f func(*kong.Flag)) {
	for _, flag := range n.Flags {
		f(flag)
	}
	for _, child := range n.Children {
		eachFlag(child, f)
	}
}

// TestDocs_FlagsExist looks up every flag that a manual names in inline code.
func TestDocs_FlagsExist(t *testing.T) {
	var c cli
	parser, err := newParser(&c, io.Discard, io.Discard, func(int) {})
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{"--tls-": true} // --tls-* stands for all of them
	eachFlag(parser.Model.Node, func(f *kong.Flag) {
		known["--"+f.Name] = true
		if f.Tag.Negatable != "" {
			known["--no-"+f.Name] = true
		}
	})
	count := 0
	for path, text := range manuals(t) {
		for _, code := range regexp.MustCompile("`[^`\n]+`").FindAllString(text, -1) {
			for _, flag := range regexp.MustCompile("(?:^|[` ])(--[a-z][a-z0-9-]*)").FindAllStringSubmatch(code, -1) {
				count++
				if !known[flag[1]] {
					t.Errorf("%s: %s: no command has the flag %s", path, code, flag[1])
				}
			}
		}
	}
	if count < 150 {
		t.Errorf("%d flags were found: the manuals are read wrongly", count)
	}
}
