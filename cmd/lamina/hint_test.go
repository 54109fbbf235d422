package main

import (
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Mistakes that are often made are followed by what to do about them.
func TestRun_SaysWhatToDoNext(t *testing.T) {
	console := httptest.NewServer(http.NotFoundHandler())
	defer console.Close()
	address := strings.TrimPrefix(console.URL, "http://")
	for _, test := range []struct{ args, want string }{
		{"up --http " + address + " --grpc 127.0.0.1:0 --model ../../models/lamina-tolstoy --batch-dir " + t.TempDir(),
			"choose another address (--listen, --http, --grpc; lamina up --help)"},
		{"status --router " + address, "the address of the gRPC API, 127.0.0.1:7070 by default"},
		{"status --router 7070", "an address is HOST:PORT"},
		{"status --router " + console.URL, "an address is HOST:PORT"},
		{"runs list --trainer 127.0.0.1:1", "start Lamina (lamina up)"},
		{"loadtest --url http://127.0.0.1:1", "start Lamina (lamina up)"},
		{"members list --consul 127.0.0.1:1", "--consul names the address of a Consul agent"},
		{"keys list --keys none.json", "lamina keys create makes the file"},
		{"up --auth-keys none.json --http 127.0.0.1:0 --grpc 127.0.0.1:0 --model ../../models/lamina-tolstoy",
			"lamina keys create makes the file"},
	} {
		verbFails(t, 1, test.want, "", strings.Fields(test.args)...)
	}
}

// A command line that is not understood is followed by the command that explains the flags.
func TestRun_NamesTheHelpOfTheCommand(t *testing.T) {
	for args, want := range map[string]string{
		"":                      "see lamina --help",
		"nonsense":              "see lamina --help",
		"up --nonsense":         "see lamina up --help",
		"keys":                  "see lamina keys --help",
		"keys create a --role":  "see lamina keys create --help",
		"help keys nonsense":    "explain lamina keys nonsense",
		"toolcall --family odd": `unknown family "odd": want deepseek, `,
	} {
		verbFails(t, 2, want, "", strings.Fields(args)...)
	}
	if help, flag := verbOK(t, "", "help", "keys", "create"), verbOK(t, "", "keys", "create", "--help"); help != flag {
		t.Errorf("lamina help prints\n%s\nand --help\n%s", help, flag)
	}
	if !strings.Contains(verbOK(t, "", "help"), "Usage: lamina <command>") {
		t.Error("lamina help does not list the commands")
	}
}

// Without the source tree there is no bundled model, and the error says what to do.
func TestRun_WithoutTheBundledModel(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, command := range []string{"up", "generate -p x", "chat"} {
		verbFails(t, 1, "name another one with --model", "", strings.Fields(command)...)
	}
}

func TestHint_OfCredentials(t *testing.T) {
	for want, err := range map[string]error{
		"LAMINA_API_KEY":           fault.New(fault.Unauthenticated, "authenticate: send a valid API key"),
		"--trainer 127.0.0.1:7074": fault.New(fault.Unimplemented, "unknown service lamina.trainer.v1.TrainerService"),
		"--server-ca names": fault.New(fault.Unavailable,
			`connection error: desc = "error reading server preface: EOF"`),
		"leave out --server-ca": fault.New(fault.Unavailable,
			`connection error: desc = "transport: authentication handshake failed: tls: first record does not look like a TLS handshake"`),
		"": &net.OpError{Op: "read", Err: net.ErrClosed},
	} {
		if got := hint(err); !strings.Contains(got, want) || want == "" && got != "" {
			t.Errorf("%v: the hint is %q, want %q", err, got, want)
		}
	}
}

func TestPlain_HasTheErrorOfTheNetworkAlone(t *testing.T) {
	for text, want := range map[string]string{
		`read the topology: connection error: desc = "transport: Error while dialing: dial tcp 127.0.0.1:1: connect: refused"`: `read the topology: dial tcp 127.0.0.1:1: connect: refused`,
		`connection error: desc = "error reading server preface: EOF"`:                                                         `error reading server preface: EOF`,
		`open model "x": no such file`: `open model "x": no such file`,
	} {
		if got := plain(errors.New(text)); got != want {
			t.Errorf("got %q, want %q", got, want)
		}
	}
}

// A program that reads the answers of a chat finds nothing else on standard output.
func TestChat_WithoutATerminalPrintsAnswersAlone(t *testing.T) {
	out := verbOK(t, "The prince\n", "chat", "--model", "../../models/lamina-tolstoy", "-n", "4")
	if strings.HasPrefix(out, ">") || strings.Count(out, "\n") == 0 || strings.Contains(out, "\n>") {
		t.Errorf("the chat prints %q", out)
	}
}
