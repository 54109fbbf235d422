// Package mcptools calls tools of MCP servers (Model Context Protocol), which the operator has configured: programs
// that are started here and speak over their standard input and output, and servers with the streamable HTTP
// transport. The protocol is that of the official SDK.
//
// A Hub connects to a server when it is first needed, keeps the session, and connects again after it was lost. The
// owner calls Close, which ends sessions and programs, with all that the programs have started, and waits for them. All
// methods take a context whose deadline they keep, and may be called concurrently.
//
// Servers are trusted as far as the operator trusts them, but their texts are data: the caller has to present them to a
// model as such. A program gets PATH, HOME and what is configured of the environment, and nothing else, since the
// environment of this process has keys. Servers may ask this client for nothing: it offers no roots, no sampling and
// no elicitation. Redirects are not followed.
package mcptools
