// Package console serves the router's page at /: chats, the mesh as a picture, training runs with their curves, models
// and API keys. The page is embedded in the binary and needs nothing else. Its content security policy forbids files
// from other origins and inline scripts, and scripts insert text only as text nodes, so that neither a model's output
// nor a member's name can become markup.
//
// Pages serves the files. Routes is the API behind them, beside the OpenAI-compatible one that the chat uses:
//
//	/api/access    what the caller may do, and what this router has
//	/api/topology  the mesh as server-sent events, in protobuf's JSON mapping with proto field names: now and after
//	               each change, until the client disconnects or does not read an event in time
//	/api/runs      the runs of the trainers of the mesh, which the router asks on the caller's behalf
//	/api/keys      the API keys, with the file that the router watches
//	/api/store     the models of the router's machine; /api/pulls fetches more of them; /api/adapters
//
// Errors are {"error": {"message", "field", "reason"}}. The gate (pkg/auth/gate) has checked who calls and whether they
// may, and writes the audit log. The program that mounts the console owns the listener, and gives it what it needs:
// a Backend, and in Options what only some processes have.
//
// The scripts are modules without a build step, each with its purpose in its first line; static/app.js comes first.
package console
