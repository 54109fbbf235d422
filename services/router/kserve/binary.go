package kserve

import (
	"encoding/binary"

	"github.com/lamina-mesh/lamina/pkg/fault"
)

// packTexts returns the elements of a tensor of datatype BYTES in its binary form: each with its length in 4 bytes,
// little-endian, before it.
func packTexts(texts []string) []byte {
	var out []byte
	for _, text := range texts {
		out = binary.LittleEndian.AppendUint32(out, uint32(len(text)))
		out = append(out, text...)
	}
	return out
}

// unpackTexts is the inverse of packTexts. An error names the field.
func unpackTexts(field string, raw []byte) ([]string, error) {
	var out []string
	for at := 0; at < len(raw); {
		if len(raw)-at < 4 {
			return nil, fault.Field(field, "byte %d: want 4 bytes with a length", at)
		}
		size := binary.LittleEndian.Uint32(raw[at:])
		at += 4
		if uint64(size) > uint64(len(raw)-at) {
			return nil, fault.Field(field, "byte %d: %d bytes are wanted and %d are left", at, size, len(raw)-at)
		}
		if len(out) == maxPrompts {
			return nil, fault.Field(field, "there are more than %d elements", maxPrompts)
		}
		out = append(out, string(raw[at:at+int(size)]))
		at += int(size)
	}
	return out, nil
}
