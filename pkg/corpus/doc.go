// Package corpus is token data for training: documents as token ids in memory-mapped files (shards), how they
// are built from texts, and the order in which a run reads them.
//
// # Reading
//
// Open reads the index of a folder (index.go) and maps its shards (shard.go). A Packing (pack.go) cuts the
// documents of a folder into samples of a fixed length. A Mixture (mixture.go) puts the samples of several
// folders into an order: sample number n of a run is a function of (seed, n). An epoch is a permutation of
// all samples (order.go), which takes no memory. So a run that resumes, or runs on another layout, reads
// each sample once and only once without a cursor.
//
// # Building
//
// Build (build.go) reads documents (source.go) from texts, encodes them with an Encoder on several goroutines
// and writes shards in the order of the documents. A build that is killed continues after the last complete
// shard, and the result has the same bytes.
//
// A caller keeps a folder open as long as it reads samples, and does not change its files meanwhile.
package corpus
