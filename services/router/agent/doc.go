// Package agent holds the tools that the server runs for a request: web_search, read_page and those of MCP servers. The
// operator configures them, and a request names those that it wants in its list of tools:
//
//	{"type": "web_search"}
//	{"type": "read_page"}
//	{"type": "mcp", "server_label": "tickets", "allowed_tools": ["find"]}
//
// A Box has everything that is configured. Choose reads the entries of one request and returns a Set: what to offer to
// the model, and how to call it. httpapi runs the loop of the request's turns over it, by the rules of pkg/toolloop.
//
// A request can never name an address of an MCP server, a command or a search engine. read_page reads an address only
// if it stands in the request's messages or in an earlier result, unless the operator allows others: otherwise a page
// could make the model send what it knows to an address of the page's choice.
//
// What goes wrong is told to the model and the client without addresses of sockets and paths of files, which are for
// the operator's log alone.
//
// The package runs no models and knows no API but the spelling of the entries above. Calls are bounded by the time of
// the Box; Call blocks, may be called concurrently, and starts no goroutines.
package agent
