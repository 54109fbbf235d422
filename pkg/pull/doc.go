// Package pull fetches models into a store (pkg/store): from a path of this machine, from an HTTP server, or from a
// repository in the layout of Hugging Face.
//
// A Source lists the files of a model and reads ranges of them. Choose, which is pure, picks the files that make up a
// model out of a listing. Pull fetches the chunks that the store lacks, several at a time, and commits the model when
// all files are whole. A pull that is killed goes on where it was: what has arrived is in the store.
//
// The other side is not trusted. Sizes, numbers of files, redirects and waiting times have limits, ranges are checked
// against what was asked for, and a file that changes on the server meanwhile is a *ChangedError. Where the source
// tells a file's SHA-256, the file must have it, and so must each chunk. A source without digests is believed at the
// first fetch; from then on the store's digests guard the file.
package pull
