// Package console is the router's page at /: a chat with the served models and the
// live chain of stages. Everything it needs is in the binary; its policy lets the
// browser load nothing else and run no inline script, and the page puts text in only
// as text, so that neither a model's words nor a member's name can become markup.
//
// The page talks to the OpenAI-style face beside it (/v1/) and to /api/topology,
// which sends the mesh as server-sent events of protobuf's JSON with proto names:
// now and after each change, until the reader goes or leaves an event untaken for
// 30 seconds.
//
// It is not an operator's control: it changes nothing. Who mounts it serves /v1/ on
// the same origin and owns the listener.
package console
