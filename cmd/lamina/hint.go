package main

import (
	"errors"
	"regexp"
	"strings"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// hint returns what to do about a mistake that is often made, or nothing. Errors come from packages that do not know
// the flags of commands, and grpc and net/http tell of sockets in texts alone.
func hint(err error) string {
	text := err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		return "another process listens there, perhaps another Lamina: stop it, or choose another address " +
			"(--listen, --http, --grpc; lamina up --help)"
	case strings.Contains(text, "looked like an HTTP/1.1 header"):
		return "an HTTP server listens there: these commands take the address of the gRPC API, " +
			"127.0.0.1:7070 by default, and not that of the console"
	case strings.Contains(text, "missing port in address"), strings.Contains(text, "too many colons in address"):
		return "an address is HOST:PORT, such as 127.0.0.1:7070"
	case strings.Contains(text, "consul") && strings.Contains(text, "connection refused"):
		return "--consul names the address of a Consul agent; lamina up needs none"
	case strings.Contains(text, "connection refused"):
		return "nothing listens there: start Lamina (lamina up), or give the address of one that runs " +
			"(--router, --trainer, --url)"
	case fault.CodeOf(err) == fault.Unavailable && strings.Contains(text, "error reading server preface"):
		return "the server may expect TLS: --server-ca names the certificate of its authority"
	case strings.Contains(text, "first record does not look like a TLS handshake"):
		return "the server speaks no TLS: leave out --server-ca and --client-cert"
	case fault.CodeOf(err) == fault.Unimplemented && strings.Contains(text, "unknown service lamina."):
		return "another service of Lamina listens there: give the address of the one that is wanted " +
			"(--router 127.0.0.1:7070, --trainer 127.0.0.1:7074)"
	case fault.CodeOf(err) == fault.Unauthenticated:
		return "commands take the API key from LAMINA_API_KEY; lamina keys create makes one"
	}
	return ""
}

// unreachable matches how gRPC says that it has no connection, around what the system says.
var unreachable = regexp.MustCompile(
	`connection error: desc = "(?:transport: )?(?:Error while dialing: )?((?:[^"\\]|\\.)*)"`,
)

// plain returns the text of an error, without the words of gRPC around an error of the network.
func plain(err error) string { return unreachable.ReplaceAllString(err.Error(), "$1") }

// usageHint returns where the flags of the command are explained that the user meant.
func usageHint(err error) string {
	command := "lamina"
	var parse *kong.ParseError
	if errors.As(err, &parse) && parse.Context != nil {
		if n := parse.Context.Selected(); n != nil {
			command = n.FullPath()
		}
	}
	return command + " --help"
}
