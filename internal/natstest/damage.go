package natstest

import (
	"encoding/binary"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"
)

// Damage flips one to three bits in each block of messages below the folder of a server that has stopped, and returns
// how many. After a power cut the server's index of the blocks is missing as well.
//
// The upper bits of sequence numbers are spared. The server believes those of a block that its index knows before it
// compares checksums, and makes an entry for each number up to the wrong one: it does not become ready.
func Damage(t testing.TB, dir string, random *rand.Rand, powerCut bool) (flips int) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil || d.IsDir():
			return err
		case d.Name() == "index.db" && powerCut:
			return os.Remove(path)
		case filepath.Ext(path) != ".blk":
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil || len(data) == 0 {
			return err
		}
		spared := sequences(data)
		for n := 1 + random.IntN(3); n > 0; {
			bit := random.IntN(8 * len(data))
			if spared[bit/8] {
				continue
			}
			data[bit/8] ^= 1 << (bit % 8)
			n, flips = n-1, flips+1
		}
		return os.WriteFile(path, data, 0o600)
	})
	if err != nil {
		t.Error(err)
	}
	return flips
}

// sequences returns the offsets in a block of the upper six bytes of sequence numbers. A record begins with its length
// (4 bytes, of which the highest bit is a flag), the sequence number and the time (8 bytes each) and the length of the
// subject (2 bytes).
func sequences(block []byte) map[int]bool {
	const header = 22
	spared := map[int]bool{}
	for at := 0; at+header <= len(block); {
		for i := at + 6; i < at+12; i++ {
			spared[i] = true
		}
		length := int(binary.LittleEndian.Uint32(block[at:]) &^ (1 << 31))
		if length < header {
			break
		}
		at += length
	}
	return spared
}
