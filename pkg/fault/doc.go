// Package fault is the vocabulary of errors. Every error that leaves a package
// and that somebody could act on is an Error, or another type that knows its
// Code; one interceptor in pkg/rpc maps codes to gRPC and HTTP and back. A service
// returns a fault or logs it, never both.
//
// The code says whose move it is. The caller's: Invalid (change the named field),
// OutOfRange (the input is longer than the model can take: shorten the named field),
// NotFound and AlreadyExists (look at what there is), FailedPrecondition (do what
// is missing first), Unauthenticated, PermissionDenied. Time's: Exhausted (wait
// RetryAfter or ask for less), Unavailable (try again, perhaps elsewhere), Aborted
// (start over from a fresh state). Nobody's: Canceled, DeadlineExceeded. The
// operator's: DataLoss (put an undamaged copy in place), Unimplemented (another
// build or model), Internal (a bug: send the log).
//
// It is not a logger, a wire format or a stack trace, and imports the standard
// library alone. Who makes an error writes its text in lower case, verb first, with
// the id that finds the thing (shard, span, session, run, step), and passes the
// cause on rather than printing it away.
package fault
