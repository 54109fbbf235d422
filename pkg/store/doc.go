// Package store keeps model files by their content in one folder that the processes of a host share.
//
// A model has a name and a Manifest: its files with their paths, sizes and digests. A file is stored once, under its
// SHA-256, however many models have it, and is divided into chunks with a digest each, so that a flipped bit is found
// where it is and one chunk is fetched again instead of the file. Open has the layout of the folder:
//
//	models/NAME.json     the manifest of a model
//	trees/KEY/NAME/      its files under their own paths, as links; the folder that Acquire returns
//	files/SHA256         a whole file; it never changes
//	sums/SHA256          the digests of its chunks
//	partial/KEY/         a file that is being fetched: its data, with holes, and a log of the chunks that it has
//	origins/KEY          the digest of a file that came from an address which does not say it
//	uses/KEY             the lock that whoever uses a model shares; its time is that of the last use
//	locks/KEY, lock      the lock of a file that is being fetched; the lock of what changes models
//
// A fetch calls Begin for each file, writes the chunks that are missing, calls Finish, and Commit for all of them. A
// fetch that is killed leaves its partial files; the next Begin reads them again and keeps the chunks whose digests are
// right. While a Partial is open, another Begin of the same file waits, in any process, so that the same bytes are
// fetched once.
//
// A store may have a limit. Reserve then removes the models that were used least recently, but never one in use.
// Locks are the operating system's (flock), so they end with their process.
//
// The package knows nothing of networks (pkg/pull) and little of model files: pkg/weights computes a model's digest.
// A Store is safe for concurrent use. Manifests come from strangers: a malformed one is a *ManifestError. Damaged
// bytes are a *DamageError.
package store
