package model

import (
	"github.com/lamina-mesh/lamina/pkg/kernel"
)

// DeviceSize is what a stage takes of the memory of a device, in bytes.
type DeviceSize struct {
	Weights   int64
	Workspace int64 // of batches of so many rows, and what the set itself takes for them and for the load
}

// SizeOn returns what a span takes on a device, before anything is loaded: types that the device has no kernels for are
// decoded there, and take more than in the file. Stages that LoadBeside would share matrices with are held. Workspace
// is for batches of up to rows rows, logits of which need logits, over a cache of some pages.
func SizeOn(
	f *Files, span Range, set kernel.Set[float32], held []*Stage[float32], rows, logits, pages int,
) (DeviceSize, error) {
	device, ok := set.(kernel.Accelerator[float32])
	if !ok {
		return DeviceSize{Weights: f.SpanBytes(span)}, nil
	}
	count := &counting{Set: set, device: device}
	s, err := load(f, span, kernel.Set[float32](count), LoadOptions{Encoder: f.Spec.Encoder()},
		beside[float32]{stages: held})
	if err != nil {
		return DeviceSize{}, err
	}
	scratch := s.scratchElements(int64(rows), int64(logits)) + s.lowElements(int64(rows), int64(logits))
	return DeviceSize{Weights: count.bytes,
		Workspace: 4*scratch + s.packingBytes(device) + device.PassBytes(s.passes(rows, logits, pages))}, nil
}

// DevicePart is memory of a device that several stages may keep. It is freed when none of them is left.
type DevicePart struct {
	Of    any // is equal in all of them
	Bytes int64
}

// DeviceParts lists what a stage keeps of its device's memory, each once: its packed matrices, and all else together.
// It is empty for a stage in the host's memory.
func (s *Stage[F]) DeviceParts() []DevicePart {
	device, ok := s.set.(kernel.Accelerator[F])
	if !ok {
		return nil
	}
	out := []DevicePart{{s.memory, s.own}}
	seen := map[any]bool{}
	add := func(m *kernel.Matrix[F]) {
		if m.Packed == nil || seen[m.Packed] {
			return
		}
		seen[m.Packed] = true
		raw := *m
		raw.Packed = nil
		out = append(out, DevicePart{m.Packed, device.PackedBytes(&raw)})
	}
	for i := range s.blocks {
		for _, m := range s.blocks[i].packable() {
			add(m)
		}
	}
	if s.head != nil {
		add(&s.head.Matrix)
	}
	return out
}

// scratchElements returns the elements of scratch memory that Forward takes for a batch.
func (s *Stage[F]) scratchElements(rows, logits int64) int64 {
	width, z := int64(s.Spec.Width), &s.sizes
	row := 2*width + 2*int64(z.q) + 2*int64(z.kv) + int64(z.ff) + int64(max(z.ff, s.Spec.Width)) + int64(z.gate)
	experts := int64(0)
	for i := range s.blocks {
		if x := s.blocks[i].FFN.Experts; x != nil {
			chosen := 1 + 2*width + 3*int64(x.Width) + 6 // with lists of rows and groups
			if x.Alpha != 0 {
				chosen += 2 * int64(x.Width) // the arguments of the clamped gate
			}
			experts = max(experts, int64(x.Count)+int64(x.TopK)*chosen)
		}
	}
	n := rows * (row + experts)
	if s.Last() {
		n += logits * (2*width + int64(s.Spec.Vocab))
	}
	return n
}
