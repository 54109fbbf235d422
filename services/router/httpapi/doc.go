// Package httpapi holds what the HTTP APIs of the router share: the table of routes, reading of JSON bodies, streams
// of events, the meaning of errors, and the running of a chat whose text is parsed into content, reasoning and tool
// calls.
//
// An API is a package beside this one (openai, anthropic, ollama). It translates its requests to router.v1's
// ChatRequest or GenerateRequest and the events back. It offers its routes as an API value, so that the program can
// walk all routes of all APIs: for policies, for the OpenAPI document and for one middleware in front of everything.
//
// The package has no state and makes no decisions about requests. The program that serves the table owns the
// listener, its header timeouts and access control.
package httpapi
