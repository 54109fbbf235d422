// Package batches is the router's API for batches of requests in OpenAI's form: /v1/files and /v1/batches. A client
// uploads a file with a request on each line, makes a batch of it, and fetches the file of the results when the batch
// has ended.
//
// A request of a batch is served like any other: it goes to the handler of its path, in this process, with the
// identity, the tenant and the budgets of the owner of the batch, at the lowest priority. So it has the same checks,
// the same answer and the same errors. What the owner may do is asked again for each request: once its key is revoked
// the batch fails. A request that is refused for now, because a budget is used up or because no pipeline has room,
// waits and is tried again, which the owner's budget of requests pays once; any other answer is a result.
//
// # What is stored
//
// The folder has files/ID with the content of a file and files/ID.json with what is known of it, and batches/ID.json
// for each batch. Files with the suffix .json are written atomically, after what they speak of. A batch appends each
// result to its output or its error file and syncs it before it counts; these files get their .json only when the
// batch ends. After a restart the batches that have not ended go on: the custom ids in both files say which requests
// have ended. A request whose result was not stored runs again. While these files cannot be read the batch waits, and
// with damaged ones it fails and keeps them.
//
// A folder belongs to one process at a time, which holds the lock of the file lock. A router without a folder, or with
// one that another process has, refuses every call.
//
// # Who owns what
//
// Run owns every goroutine: one for each batch that has not ended, which owns one for each of its requests that run.
// The number of requests that run is bounded for all batches together, and tenants share these slots (turns). A request
// is read from its file when it has a slot, also when it is tried again. So only requests that run are in memory; of
// those that wait for another try the place in the file is. When Run's context ends, the requests that run are ended
// without a result, and all goroutines are joined. The program ends the context after the router has been drained.
package batches
