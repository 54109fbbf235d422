// Package fault defines the errors of Lamina. Every error that leaves a package and that
// somebody can act on is an Error, or another type that has a Code. An interceptor in pkg/rpc
// maps codes to gRPC and HTTP and back. A service either returns a fault or logs it, never both.
//
// The code says who can act. The caller: Invalid (change the named field), OutOfRange (the input
// is longer than the model supports: shorten the named field), NotFound and AlreadyExists (list
// what exists), FailedPrecondition (do first what is missing), Unauthenticated,
// PermissionDenied. The caller, later: Exhausted (wait RetryAfter or ask for less), Unavailable
// (retry, perhaps elsewhere), Aborted (start over from a fresh state). Nobody: Canceled,
// DeadlineExceeded. The operator: DataLoss (restore an undamaged copy), Unimplemented (use
// another build or model), Internal (report a bug with the log).
//
// The package does not log, defines no wire format, records no stack traces, and imports only
// the standard library. The text of an error is in lower case, starts with a verb and names the
// id of the thing (shard, span, session, run, step). An error keeps its cause, so that callers
// can inspect it, instead of printing it into the text.
package fault
