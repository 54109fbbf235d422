// Package usage makes shell completions and manual pages from the table of commands, which is also what --help shows,
// so the three never differ.
package usage

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Complete returns what the last of the words of a command line, without the name of the program, may become: commands,
// flags, or values of a flag. Nothing means that the shell should complete names of files.
func Complete(app *kong.Application, words []string) []string {
	if len(words) == 0 {
		words = []string{""}
	}
	node, last := app.Node, words[len(words)-1]
	var awaits *kong.Flag // a flag whose value is the next word
	for _, word := range words[:len(words)-1] {
		switch {
		case awaits != nil:
			awaits = nil
		case word == "--":
			return nil
		case strings.HasPrefix(word, "-"):
			awaits = valueOf(node, word)
		default:
			if child := childOf(node, word); child != nil {
				node = child
			}
		}
	}
	if awaits != nil {
		return matching(enum(awaits.Value), last)
	}
	if name, value, ok := strings.Cut(last, "="); ok && strings.HasPrefix(name, "--") {
		flag := flagOf(node, strings.TrimPrefix(name, "--"))
		if flag == nil {
			return nil
		}
		var out []string
		for _, v := range matching(enum(flag.Value), value) {
			out = append(out, name+"="+v)
		}
		return out
	}
	if strings.HasPrefix(last, "-") {
		var names []string
		for _, flag := range flags(node) {
			names = append(names, "--"+flag.Name)
		}
		slices.Sort(names)
		return matching(slices.Compact(names), last)
	}
	var names []string
	for _, child := range node.Children {
		if !child.Hidden {
			names = append(names, child.Name)
		}
	}
	slices.Sort(names)
	return matching(names, last)
}

func matching(all []string, prefix string) []string {
	var out []string
	for _, s := range all {
		if strings.HasPrefix(s, prefix) {
			out = append(out, s)
		}
	}
	return out
}

func childOf(n *kong.Node, name string) *kong.Node {
	for _, child := range n.Children {
		if child.Name == name || slices.Contains(child.Aliases, name) {
			return child
		}
	}
	return nil
}

// flags returns the flags that a command takes, its own first.
func flags(n *kong.Node) []*kong.Flag {
	var out []*kong.Flag
	for ; n != nil; n = n.Parent {
		for _, flag := range n.Flags {
			if !flag.Hidden {
				out = append(out, flag)
			}
		}
	}
	return out
}

func flagOf(n *kong.Node, name string) *kong.Flag {
	for _, flag := range flags(n) {
		if flag.Name == name {
			return flag
		}
	}
	return nil
}

// valueOf returns the flag that a word names, if the flag takes its value from the next word.
func valueOf(n *kong.Node, word string) *kong.Flag {
	for _, flag := range flags(n) {
		if (word == "--"+flag.Name || flag.Short != 0 && word == "-"+string(flag.Short)) && !flag.IsBool() &&
			!flag.IsCounter() {
			return flag
		}
	}
	return nil
}

// Script returns the script that lets a shell ask `NAME complete` for completions.
func Script(shell, name string) (string, error) {
	replace := strings.NewReplacer("NAME", name)
	switch shell {
	case "bash":
		return replace.Replace(bash), nil
	case "zsh":
		return replace.Replace(zsh), nil
	case "fish":
		return replace.Replace(fish), nil
	}
	return "", fault.Field("shell", "want bash, zsh or fish, got %q", shell)
}

// Bash splits words at = as well, so a flag with its value is put together again.
const bash = `_NAME() {
  local line="${COMP_LINE:0:COMP_POINT}" words
  read -ra words <<< "$line"
  [[ "$line" == *[[:space:]] ]] && words+=("")
  local candidates
  mapfile -t candidates < <(NAME complete -- "${words[@]:1}" 2>/dev/null)
  local last="${words[-1]}"
  if [[ "$last" == --*=* && "$COMP_WORDBREAKS" == *=* ]]; then
    candidates=("${candidates[@]#*=}")
  fi
  COMPREPLY=("${candidates[@]}")
}
complete -o default -F _NAME NAME
`

const zsh = `#compdef NAME
_NAME() {
  local -a candidates
  candidates=("${(@f)$(NAME complete -- "${words[@]:1:$((CURRENT-1))}" 2>/dev/null)}")
  if [[ -n "${candidates[*]}" ]]; then
    compadd -- "${candidates[@]}"
  else
    _files
  fi
}
compdef _NAME NAME
`

const fish = `function __NAME_complete
    set -l words (commandline -opc) (commandline -ct)
    NAME complete -- $words[2..-1] 2>/dev/null
end
complete -c NAME -a '(__NAME_complete)'
`

// Pages returns the manual pages of a program: one of the program, and one of each command, by the name of its file.
func Pages(app *kong.Application, version string) map[string]string {
	pages := map[string]string{app.Name + ".1": page(app, app.Node, version)}
	for _, n := range leaves(app.Node) {
		pages[strings.Join(append([]string{app.Name}, path(n)...), "-")+".1"] = page(app, n, version)
	}
	return pages
}

// leaves returns the commands that can be run, in the order of the help.
func leaves(n *kong.Node) (out []*kong.Node) {
	for _, child := range n.Children {
		switch {
		case child.Hidden:
		case child.Leaf():
			out = append(out, child)
		default:
			out = append(out, leaves(child)...)
		}
	}
	return out
}

// path returns the names of a command and of those around it.
func path(n *kong.Node) (out []string) {
	for ; n != nil && n.Type != kong.ApplicationNode; n = n.Parent {
		out = append([]string{n.Name}, out...)
	}
	return out
}

// page returns the manual page of a command, in the macros of man(7).
func page(app *kong.Application, n *kong.Node, version string) string {
	var b strings.Builder
	names := append([]string{app.Name}, path(n)...)
	fmt.Fprintf(&b, ".TH %s 1 \"\" \"%s %s\" \"%s manual\"\n", roff(strings.ToUpper(strings.Join(names, "-"))), app.Name,
		roff(version), app.Name)
	fmt.Fprintf(&b, ".SH NAME\n%s \\- %s\n.SH SYNOPSIS\n.B %s\n", roff(strings.Join(names, "-")),
		roff(strings.TrimSuffix(n.Help, ".")), roff(strings.Join(names, " ")))
	if n.Type == kong.ApplicationNode {
		fmt.Fprintf(&b, "COMMAND [FLAGS]\n.SH COMMANDS\n")
		for _, leaf := range leaves(n) {
			fmt.Fprintf(&b, ".TP\n.B %s\n%s\n", roff(strings.Join(path(leaf), " ")), roff(leaf.Help))
		}
	} else {
		for _, arg := range n.Positional {
			fmt.Fprintf(&b, "%s\n", roff(arg.Summary()))
		}
		fmt.Fprintf(&b, "[FLAGS]\n.SH DESCRIPTION\n%s\n", roff(cmp.Or(n.Detail, n.Help)))
		if len(n.Positional) > 0 {
			fmt.Fprintf(&b, ".SH ARGUMENTS\n")
			for _, arg := range n.Positional {
				fmt.Fprintf(&b, ".TP\n.I %s\n%s\n", roff(arg.Name), roff(arg.Help))
			}
		}
	}
	fmt.Fprintf(&b, ".SH FLAGS\n")
	for _, flag := range flags(n) {
		writeFlag(&b, flag)
	}
	fmt.Fprintf(&b, ".SH FILES\nThe configuration file (\\fB\\-\\-config\\fR, \\fBLAMINA_CONFIG\\fR) holds flags by their "+
		"names. A flag of the command line wins over the environment, and the environment over the file.\n")
	return b.String()
}

func writeFlag(b *strings.Builder, flag *kong.Flag) {
	name := "--" + flag.Name
	if flag.Tag.Negatable != "" {
		name = "--[no-]" + flag.Name
	}
	if flag.Short != 0 {
		name = "-" + string(flag.Short) + ", " + name
	}
	fmt.Fprintf(b, ".TP\n.B %s", roff(name))
	if !flag.IsBool() && !flag.IsCounter() {
		fmt.Fprintf(b, "=%s", roff(flag.FormatPlaceHolder()))
	}
	fmt.Fprintf(b, "\n%s\n", roff(flag.Help))
	if flag.Enum != "" {
		fmt.Fprintf(b, "One of %s.\n", roff(strings.Join(enum(flag.Value), ", ")))
	}
	if flag.Default != "" {
		fmt.Fprintf(b, "Default: %s.\n", roff(flag.Default))
	}
	for _, env := range flag.Envs {
		fmt.Fprintf(b, "Environment: %s.\n", roff(env))
	}
}

// enum returns the values that a flag may have; none for a flag that takes any.
func enum(v *kong.Value) []string {
	if v.Enum == "" {
		return nil
	}
	return v.EnumSlice()
}

// roff escapes a text for man(7).
func roff(s string) string {
	s = strings.NewReplacer("\\", "\\e", "-", "\\-", "\n", " ").Replace(s)
	if strings.HasPrefix(s, ".") || strings.HasPrefix(s, "'") {
		s = "\\&" + s
	}
	return s
}
