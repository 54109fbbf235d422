// Package batch is the core of batches of requests in OpenAI's form: the lines of an input file, the states of a batch,
// and the lines of its output. It is pure: it takes the time as an argument, and readers from its caller.
//
// An input file has one request on each line:
//
//	{"custom_id": "a", "method": "POST", "url": "/v1/chat/completions", "body": {..}}
//
// Check reads a whole file before anything runs. A file with a wrong line is refused as a whole, and the errors name
// the lines. Lines then gives the requests one by one.
//
// A Batch is what clients see of it. Its methods are the only way to change its status; each takes the time at which
// that happened, and fails if the batch is in no state for it. Between validating and the end the caller stores the
// batch after each change, and a Result for each request that has ended. ReadResults finds out after a restart which
// requests have ended, so that none of them runs twice.
//
// Package services/router/batches is the caller: it has the folder, the goroutines and the HTTP API.
package batch
