// Package console serves the router's page at /: a chat with the served models and the live chain
// of stages. The page is embedded in the binary. Its content security policy forbids files from
// other origins and inline scripts, and scripts insert text only as text nodes, so that neither a
// model's output nor a member's name can become markup.
//
// The page uses the OpenAI-compatible API at /v1/ and /api/topology, which sends the mesh as
// server-sent events, in protobuf's JSON mapping with proto field names: now and after each
// change, until the client disconnects or does not read an event for 30 seconds.
//
// The page only displays; it cannot change anything. The program that mounts it serves /v1/ on the
// same origin and owns the listener.
package console
