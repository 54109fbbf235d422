package ptxsim

// Type is a fundamental type of PTX, as in the suffix of an instruction or a declaration.
type Type uint8

// The types. B types are bits without an interpretation; F16x2 and BF16x2 are two halves in one 32-bit register.
const (
	noType Type = iota
	B8
	B16
	B32
	B64
	U8
	U16
	U32
	U64
	S8
	S16
	S32
	S64
	F16
	BF16
	F16x2
	BF16x2
	TF32
	F32
	F64
	Pred
)

type class uint8

const (
	classBits class = iota + 1
	classUnsigned
	classSigned
	classFloat
	classPred
)

var types = [...]struct {
	name  string
	bits  int
	class class
}{
	B8: {"b8", 8, classBits}, B16: {"b16", 16, classBits}, B32: {"b32", 32, classBits}, B64: {"b64", 64, classBits},
	U8: {"u8", 8, classUnsigned}, U16: {"u16", 16, classUnsigned}, U32: {"u32", 32, classUnsigned},
	U64: {"u64", 64, classUnsigned},
	S8:  {"s8", 8, classSigned}, S16: {"s16", 16, classSigned}, S32: {"s32", 32, classSigned},
	S64: {"s64", 64, classSigned},
	F16: {"f16", 16, classFloat}, BF16: {"bf16", 16, classFloat}, F16x2: {"f16x2", 32, classFloat},
	BF16x2: {"bf16x2", 32, classFloat}, TF32: {"tf32", 32, classFloat}, F32: {"f32", 32, classFloat},
	F64: {"f64", 64, classFloat}, Pred: {"pred", 1, classPred},
}

var typeNames = func() map[string]Type {
	m := make(map[string]Type, len(types))
	for t := B8; t <= Pred; t++ {
		m[types[t].name] = t
	}
	return m
}()

// String returns the name of the type without its dot.
func (t Type) String() string {
	if t == noType {
		return "no type"
	}
	return types[t].name
}

func (t Type) bits() int    { return types[t].bits }
func (t Type) bytes() int   { return types[t].bits / 8 }
func (t Type) class() class { return types[t].class }
func (t Type) signed() bool { return t.class() == classSigned }
func (t Type) integer() bool {
	return t.class() == classUnsigned || t.class() == classSigned
}

// mask returns the bits of a value of the type.
func (t Type) mask() uint64 {
	if t.bits() == 64 {
		return ^uint64(0)
	}
	return 1<<t.bits() - 1
}

// extend returns the integer that the low bits of v hold.
func (t Type) extend(v uint64) int64 {
	s := 64 - t.bits()
	if t.signed() {
		return int64(v<<s) >> s
	}
	return int64(v << s >> s)
}

// accepts reports whether an operand of instruction type t may be a register of type r: the sizes are equal, and the
// kinds are equal or one of them is bits. Registers of halves in pairs and of tf32 are declared as 32 bits.
func (t Type) accepts(r Type) bool {
	if t == Pred || r == Pred {
		return t == r
	}
	if t.bits() != r.bits() {
		return false
	}
	if t.class() == classBits || r.class() == classBits || t == r {
		return true
	}
	return t.integer() && r.integer()
}
