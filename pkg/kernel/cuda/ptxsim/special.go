package ptxsim

import "encoding/binary"

var specials = map[string]Type{
	"%tid.x": U32, "%tid.y": U32, "%tid.z": U32, "%ntid.x": U32, "%ntid.y": U32, "%ntid.z": U32,
	"%ctaid.x": U32, "%ctaid.y": U32, "%ctaid.z": U32, "%nctaid.x": U32, "%nctaid.y": U32, "%nctaid.z": U32,
	"%laneid": U32, "%warpid": U32, "%nwarpid": U32,
	"%lanemask_eq": U32, "%lanemask_lt": U32, "%lanemask_le": U32, "%lanemask_gt": U32, "%lanemask_ge": U32,
	"%dynamic_smem_size": U32, "%total_smem_size": U32,
}

// special reports whether a name is a special register. Those that count time or name hardware are missing, because
// a launch must always give the same result.
func special(name string) bool { return specials[name] != noType }

func specialType(name string) Type { return specials[name] }

// fixedValue returns the value of a fixed register in a lane.
func (w *warp) fixedValue(f *fixed, lane int) uint64 {
	if f.param != nil {
		var v [8]byte
		copy(v[:], w.b.params[f.off:f.off+f.size])
		return binary.LittleEndian.Uint64(v[:])
	}
	b := w.b
	axis := func(v [3]int) uint64 { return uint64(v[f.special[len(f.special)-1]-'x']) }
	switch f.special {
	case "":
		return f.value
	case "%tid.x", "%tid.y", "%tid.z":
		return axis(b.thread(w.id*warpSize + lane))
	case "%ntid.x", "%ntid.y", "%ntid.z":
		return axis(b.shape.block)
	case "%ctaid.x", "%ctaid.y", "%ctaid.z":
		return axis(b.index)
	case "%nctaid.x", "%nctaid.y", "%nctaid.z":
		return axis(b.shape.grid)
	case "%laneid":
		return uint64(lane)
	case "%warpid":
		return uint64(w.id)
	case "%nwarpid":
		return uint64((b.threads + warpSize - 1) / warpSize)
	case "%lanemask_eq":
		return 1 << lane
	case "%lanemask_lt":
		return 1<<lane - 1
	case "%lanemask_le":
		return 1<<(lane+1) - 1
	case "%lanemask_gt":
		return uint64(allLanes &^ uint32(1<<(lane+1)-1))
	case "%lanemask_ge":
		return uint64(allLanes &^ uint32(1<<lane-1))
	case "%dynamic_smem_size":
		return uint64(max(0, len(b.shared)-b.k.dynamic))
	case "%total_smem_size":
		return uint64(len(b.shared))
	}
	return 0
}

// registerName returns the name of a register for messages.
func (k *kernel) registerName(slot int32) string {
	for _, s := range k.fn.body {
		for i := range s.args {
			if n := s.args[i].nameOf(slot); n != "" {
				return n
			}
		}
	}
	return "?"
}

func (o *operand) nameOf(slot int32) string {
	if o.reg != nil && o.reg.typ != Pred && o.reg.slot == slot {
		return o.reg.name
	}
	for i := range o.vec {
		if n := o.vec[i].nameOf(slot); n != "" {
			return n
		}
	}
	return ""
}
