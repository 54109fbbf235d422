package usage_test

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/cmd/lamina/internal/usage"
)

// cli is a command line like that of the program.
type cli struct {
	Level string `help:"Level of the log." enum:"debug,info" default:"info" env:"LAMINA_LEVEL"`

	Router struct {
		HTTP  string `name:"http" help:"Address \\ with - and 'quotes'."`
		Model string `short:"m" help:"File."`
		Place bool   `help:"Place layers." negatable:"" default:"true"`
	} `cmd:"" help:"Run the router."`
	Keys struct {
		Create struct {
			Name string `arg:"" help:"Name of the key."`
		} `cmd:"" help:"Make a key."`
		List struct{} `cmd:"" help:"List keys."`
	} `cmd:"" help:"Keys."`
	Secret struct{} `cmd:"" hidden:""`
}

func app(t *testing.T) *kong.Application {
	t.Helper()
	var c cli
	k, err := kong.New(&c, kong.Name("lamina"), kong.Description("A mesh."))
	if err != nil {
		t.Fatal(err)
	}
	return k.Model
}

func TestComplete_OffersCommandsFlagsAndValues(t *testing.T) {
	for line, want := range map[string]string{
		"":                         "keys router",
		"r":                        "router",
		"keys ":                    "create list",
		"keys create ":             "",
		"router --":                "--help --http --level --model --place",
		"router --ht":              "--http",
		"router --http ":           "",
		"router --level ":          "debug info",
		"--level d":                "debug",
		"--level=":                 "--level=debug --level=info",
		"router -m ":               "",
		"router --place --le":      "--level",
		"router --http keys --mod": "--model",
		"router -- --":             "",
		"unknown --l":              "--level",
		"router --unknown=":        "",
	} {
		got := strings.Join(usage.Complete(app(t), strings.Split(line, " ")), " ")
		if got != want {
			t.Errorf("%q: got %q, want %q", line, got, want)
		}
	}
	if got := usage.Complete(app(t), nil); len(got) != 2 {
		t.Errorf("no words: got %q", got)
	}
}

func TestPages_TellEveryCommandAndFlag(t *testing.T) {
	pages := usage.Pages(app(t), "1.2")
	var names []string
	for name := range pages {
		names = append(names, name)
	}
	slices.Sort(names)
	if got := strings.Join(names, " "); got != "lamina-keys-create.1 lamina-keys-list.1 lamina-router.1 lamina.1" {
		t.Errorf("the pages are %s", got)
	}
	for page, texts := range map[string][]string{
		"lamina.1": {".B router\nRun the router.", ".B keys create", "A mesh"},
		"lamina-router.1": {`.TH LAMINA\-ROUTER 1`, `.B \-\-http=STRING`, `Address \e with \- and 'quotes'.`,
			`.B \-\-[no\-]place`, `.B \-m, \-\-model=STRING`, "One of debug, info.", "Default: info.",
			"Environment: LAMINA_LEVEL."},
		"lamina-keys-create.1": {".I name\nName of the key.", "<name>"},
	} {
		for _, text := range texts {
			if !strings.Contains(pages[page], text) {
				t.Errorf("%s does not have %q:\n%s", page, text, pages[page])
			}
		}
	}
}

// Bash offers what Complete does. A program that prints its arguments stands for lamina.
func TestScript_RunsInBash(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil {
		t.Skip("there is no bash here")
	}
	script, err := usage.Script("bash", "lamina")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	fake := "#!/bin/sh\nprintf '%s\\n' \"$@\" > " + dir + "/args\nprintf '%s\\n' --level=debug --level=info\n"
	if err := os.WriteFile(filepath.Join(dir, "lamina"), []byte(fake), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(bash, "-c", script+`
COMP_LINE="lamina router --level=" COMP_POINT=22 COMP_WORDS=(lamina router --level =) COMP_CWORD=3
_lamina
printf '%s ' "${COMPREPLY[@]}"`)
	cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	args, err := os.ReadFile(filepath.Join(dir, "args"))
	if err != nil {
		t.Fatal(err)
	}
	if string(out) != "debug info " || string(args) != "complete\n--\nrouter\n--level=\n" {
		t.Errorf("bash offers %q after asking with %q", out, args)
	}
	for _, shell := range []string{"zsh", "fish"} {
		if s, err := usage.Script(shell, "lamina"); err != nil || !strings.Contains(s, "lamina complete --") {
			t.Errorf("%s: %v", shell, err)
		}
	}
	if _, err := usage.Script("cmd.exe", "lamina"); err == nil {
		t.Error("an unknown shell has a script")
	}
}
