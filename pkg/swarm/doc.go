// Package swarm moves the files of models between shards, chunk by chunk (weights.v1).
//
// A Server gives away the models that a shard has whole. A Remote is a model that other shards have: it opens with the
// headers of its files alone, as a folder whose files have holes, and Fetch brings the chunks of the tensors that are
// needed, from several peers at once. Each chunk is compared with its digest. A chunk that is damaged or does not come
// is fetched from another peer, and the peer is asked last from then on; Blamed names it.
//
// The peers must agree on the manifest of a model, which has the digest of the digests of all chunks. What one of them
// says alone cannot be compared with the model's digest before the files are whole: shards trust each other as far as
// their certificates (pkg/auth), and what is checked here are errors of disks and links.
//
// Chunks go to the store (pkg/store), whose locks see to it that processes of a host fetch no chunk twice.
package swarm
