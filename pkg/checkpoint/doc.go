// Package checkpoint is the format of checkpoints on disk. A checkpoint is complete or absent: whatever
// moment a machine loses power at, a reader finds the new checkpoint whole, or the one before it.
//
// A checkpoint of step N is the folder step-N. It holds safetensors files, which several writers may
// write at once, and checkpoint.json, the manifest. The manifest lists the files and their tensors with
// sizes, offsets and SHA-256 digests, and has a digest of itself. A tensor is found by its kind (such as
// "weight" or "moment1", the part of the state that it is) and its name, in whatever file it is, so the
// layout of the writers does not bind a reader. A reader verifies each tensor that it reads.
//
// # Order of operations
//
//  1. Store.Begin removes what is left of an earlier attempt, the manifest first, and makes the folder.
//  2. Each writer calls Store.Create for its files and commits them. A file is written under a temporary
//     name, synced and renamed.
//  3. Store.Commit syncs the folder, so that the names of the files are durable. Then it writes the
//     manifest in the same way as a file, and syncs the folders above. From its return on the checkpoint
//     is durable.
//  4. Store.Rotate removes checkpoints that need not be kept, their manifests first.
//
// # Claims
//
// Several processes may believe that they lead a run. Store.Take gives one of them the right to write, and takes it
// from all others: claim.go says how.
//
// The package knows nothing of training. It does I/O only through FS, so that a test can stop at every
// operation and lose what was not synced (crash_test.go). Dir is the FS of a folder.
package checkpoint
