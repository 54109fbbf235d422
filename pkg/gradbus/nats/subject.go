package nats

import (
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/pkg/fault"
	"github.com/lamina-mesh/lamina/pkg/gradbus"
)

// token makes a name safe for subjects and stream names. Letters, digits and '-' stay, and each
// other byte becomes '_' and two hexadecimal digits, so that different names give different
// tokens.
func token(name string) string {
	var b strings.Builder
	for i := range len(name) {
		switch c := name[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-':
			b.WriteByte(c)
		default:
			b.WriteString("_" + hex.EncodeToString([]byte{c}))
		}
	}
	return b.String()
}

func streamName(run string) string { return "LAMINA_GRAD_" + token(run) }

func runSubject(run string) string { return "lamina.grad." + token(run) }

func partSubject(run, part string) string { return runSubject(run) + "." + token(part) + ".>" }

// subject returns the subject of a key: lamina.grad.RUN.PART.STEP.LO-HI.CHUNK, with -ATTEMPT behind it unless
// that is 0.
func subject(k gradbus.Key) string {
	text := fmt.Sprintf("%s.%s.%d.%d-%d.%d", runSubject(k.Run), token(k.Part), k.Step, k.SlotLo, k.SlotHi, k.Chunk)
	if k.Attempt > 0 {
		text += fmt.Sprintf("-%d", k.Attempt)
	}
	return text
}

// parse reads step, slots, chunk and attempt from a subject. The caller knows the run and the part.
func parse(subject, run, part string) (gradbus.Key, error) {
	bad := func(err error) (gradbus.Key, error) {
		return gradbus.Key{}, fault.Wrap(fault.DataLoss, err, "read event %q", subject)
	}
	tokens := strings.Split(subject, ".")
	if len(tokens) != 7 {
		return bad(fmt.Errorf("parse the subject: want 7 tokens, got %d", len(tokens)))
	}
	lo, hi, ok := strings.Cut(tokens[5], "-")
	if !ok {
		return bad(fmt.Errorf("parse the subject: want slots LO-HI, got %q", tokens[5]))
	}
	k := gradbus.Key{Run: run, Part: part}
	var err error
	if k.Step, err = strconv.ParseUint(tokens[4], 10, 64); err != nil {
		return bad(err)
	}
	type number struct {
		text string
		to   *uint32
	}
	chunk, attempt, repeated := strings.Cut(tokens[6], "-")
	fields := []number{{lo, &k.SlotLo}, {hi, &k.SlotHi}, {chunk, &k.Chunk}}
	if repeated {
		fields = append(fields, number{attempt, &k.Attempt})
	}
	for _, field := range fields {
		n, err := strconv.ParseUint(field.text, 10, 32)
		if err != nil {
			return bad(err)
		}
		*field.to = uint32(n)
	}
	return k, nil
}
