package sample

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/lamina-mesh/lamina/internal/configfile"
	"github.com/lamina-mesh/lamina/pkg/fault"
)

// Question is a row of logits and the chain to run over it.
type Question struct {
	Logits  []float64 // or the logarithms of the probabilities
	History []int32
	Seed    uint64
	Chain   Chain
}

// ParseQuestion reads {"logits" or "probs": [...], "history": [ids], "seed": n, "end_ids":
// [ids], "chain": [{step: value}, ...]}. Errors name the field. A single end id is never a
// bad word, as in transformers; without end_ids the last id of the row is the end id.
func ParseQuestion(text []byte) (*Question, error) {
	var q struct {
		Logits  []float64                    `json:"logits"`
		Probs   []float64                    `json:"probs"`
		History []int32                      `json:"history"`
		Seed    uint64                       `json:"seed"`
		Ends    []int32                      `json:"end_ids"`
		Chain   []map[string]json.RawMessage `json:"chain"`
	}
	if err := strict(text, &q, ""); err != nil {
		return nil, err
	}
	out := &Question{Logits: q.Logits, History: q.History, Seed: q.Seed}
	switch {
	case q.Logits != nil && q.Probs != nil:
		return nil, fault.Field("probs", "want logits or probs, got both")
	case len(q.Logits)+len(q.Probs) == 0:
		return nil, fault.Field("logits", "want logits or probs, got neither")
	}
	for i, p := range q.Probs {
		if !(p >= 0) {
			return nil, fault.Field(fmt.Sprintf("probs[%d]", i), "want 0 or more, got %v", p)
		}
		out.Logits = append(out.Logits, math.Log(p))
	}
	for i, id := range q.History {
		if id < 0 {
			return nil, fault.Field(fmt.Sprintf("history[%d]", i), "want an id of 0 or more, got %d", id)
		}
	}
	if q.Ends == nil {
		q.Ends = []int32{int32(len(out.Logits) - 1)}
	}
	var err error
	out.Chain, err = parseChain(q.Chain)
	for i, step := range out.Chain {
		if words, ok := step.(BadWords); ok {
			out.Chain[i] = words.Without(q.Ends)
		}
	}
	return out, err
}

// parseChain reads [{step: value}, ...].
func parseChain(steps []map[string]json.RawMessage) (Chain, error) {
	var chain Chain
	for i, step := range steps {
		field := fmt.Sprintf("chain[%d]", i)
		if len(step) != 1 {
			return nil, fault.Field(field, "want one step, as {step: value}, got %d", len(step))
		}
		for name, value := range step {
			s, err := parseStep(name, value, field+"."+name)
			if err != nil {
				return nil, err
			}
			chain = append(chain, s)
		}
	}
	return chain, nil
}

// strict decodes JSON without unknown fields or trailing text.
func strict(text []byte, into any, field string) error {
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	err := d.Decode(into)
	if err == nil {
		if _, end := d.Token(); !errors.Is(end, io.EOF) {
			err = errors.New("something follows the value")
		}
	}
	var mismatch *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &mismatch):
		if mismatch.Field != "" {
			field = strings.TrimPrefix(field+"."+mismatch.Field, ".")
		}
		return fault.Field(field, "a %s at offset %d, want %s", mismatch.Value, mismatch.Offset,
			configfile.Kind(mismatch.Type))
	}
	return fault.Field(field, "%s", strings.TrimPrefix(err.Error(), "json: "))
}

// within checks the bounds of a number.
func within(field string, v, least, most float64) error {
	if !(v >= least && v <= most) {
		return fault.Field(field, "%v is not within %v..%v", v, least, most)
	}
	return nil
}

const far = math.MaxFloat32

// number reads a number within bounds.
func number(value json.RawMessage, field string, least, most float64) (float64, error) {
	var v *float64
	if err := strict(value, &v, field); err != nil {
		return 0, err
	}
	if v == nil {
		return 0, fault.Field(field, "is null, want a number")
	}
	return *v, within(field, *v, least, most)
}

func whole(value json.RawMessage, field string) (int, error) {
	v, err := number(value, field, math.MinInt32, math.MaxInt32)
	if err == nil && v != math.Trunc(v) {
		err = fault.Field(field, "want a whole number, got %v", v)
	}
	return int(v), err
}

func parseStep(name string, value json.RawMessage, field string) (Step, error) {
	switch name {
	case "temperature":
		v, err := number(value, field, 0, far)
		return Temperature(v), err
	case "top_k":
		v, err := whole(value, field)
		return TopK(v), err
	case "top_p":
		v, err := number(value, field, 0, far)
		return TopP(v), err
	case "min_p":
		v, err := number(value, field, 0, 1)
		return MinP(v), err
	case "typical_p":
		v, err := number(value, field, 0, far)
		return TypicalP(v), err
	case "top_n_sigma":
		v, err := number(value, field, -far, far)
		return TopNSigma(v), err
	case "epsilon_cutoff":
		v, err := number(value, field, 0, 1)
		return EpsilonCutoff(v), err
	case "eta_cutoff":
		v, err := number(value, field, 0, 1)
		return EtaCutoff(v), err
	case "repetition_penalty":
		v, err := number(value, field, math.SmallestNonzeroFloat64, far)
		return RepetitionPenalty(v), err
	case "no_repeat_ngram":
		v, err := whole(value, field)
		if err == nil && v < 0 {
			err = fault.Field(field, "%d is below 0", v)
		}
		return NoRepeatNGram(v), err
	case "bad_words":
		words, err := sequences(value, field)
		return BadWords(words), err
	case "logit_bias":
		return parseBias(value, field)
	}
	return parseObject(name, value, field)
}

// parseObject reads the steps whose value is an object.
func parseObject(name string, value json.RawMessage, field string) (Step, error) {
	check := func(err error, bounds ...error) error {
		for _, b := range bounds {
			if err == nil {
				err = b
			}
		}
		return err
	}
	switch name {
	case "dynamic_temperature":
		v := struct {
			Temperature float64 `json:"temperature"`
			Range       float64 `json:"range"`
			Exponent    float64 `json:"exponent"`
		}{1, 0, 1}
		err := strict(value, &v, field)
		return DynamicTemperature{v.Temperature, v.Range, v.Exponent}, check(err,
			within(field+".temperature", v.Temperature, 0, far), within(field+".range", v.Range, 0, far),
			within(field+".exponent", v.Exponent, -far, far))
	case "xtc":
		v := struct {
			Probability float64 `json:"probability"`
			Threshold   float64 `json:"threshold"`
		}{0, 0.1}
		err := strict(value, &v, field)
		return XTC{v.Probability, v.Threshold},
			check(err, within(field+".probability", v.Probability, 0, 1), within(field+".threshold", v.Threshold, 0, 1))
	case "penalties":
		v := struct {
			Repeat    float64 `json:"repeat"`
			Frequency float64 `json:"frequency"`
			Presence  float64 `json:"presence"`
			LastN     int     `json:"last_n"`
		}{1, 0, 0, -1}
		err := strict(value, &v, field)
		return Penalties{Repeat: v.Repeat, Frequency: v.Frequency, Presence: v.Presence, LastN: v.LastN}, check(err,
			within(field+".repeat", v.Repeat, math.SmallestNonzeroFloat64, far),
			within(field+".frequency", v.Frequency, -far, far), within(field+".presence", v.Presence, -far, far))
	case "dry":
		v := struct {
			Multiplier float64         `json:"multiplier"`
			Base       float64         `json:"base"`
			Allowed    int             `json:"allowed_length"`
			LastN      int             `json:"penalty_last_n"`
			Breakers   json.RawMessage `json:"sequence_breakers"`
		}{0, 1.75, 2, -1, nil}
		err := strict(value, &v, field)
		d := DRY{Multiplier: v.Multiplier, Base: v.Base, AllowedLength: v.Allowed, LastN: v.LastN}
		if err == nil && v.Breakers != nil {
			d.Breakers, err = sequences(v.Breakers, field+".sequence_breakers")
		}
		return d, check(err, within(field+".multiplier", v.Multiplier, -far, far),
			within(field+".base", v.Base, 0, far),
			within(field+".allowed_length", float64(v.Allowed), 0, math.MaxInt32))
	case "mirostat":
		v := struct {
			Version int     `json:"version"`
			Tau     float64 `json:"tau"`
			Eta     float64 `json:"eta"`
		}{2, 5, 0.1}
		err := strict(value, &v, field)
		return Mirostat{v.Version, v.Tau, v.Eta},
			check(err, within(field+".version", float64(v.Version), 1, 2), within(field+".tau", v.Tau, 0, far),
				within(field+".eta", v.Eta, 0, 1))
	case "min_tokens":
		var v struct {
			N    int     `json:"n"`
			Ends []int32 `json:"ends"`
		}
		err := strict(value, &v, field)
		return MinTokens{v.N, v.Ends}, err
	}
	return nil, fault.Field(field, "unknown sampling step %q; known are %s", name, strings.Join(ruleNames(), ", "))
}

// ruleNames returns the names of all steps.
func ruleNames() []string {
	names := append(slices.Clone(defaultOrder), "dynamic_temperature")
	slices.Sort(names)
	return names
}

// sequences reads [[ids], ...]; an id alone is a sequence of one.
func sequences(value json.RawMessage, field string) ([][]int32, error) {
	var items []json.RawMessage
	if err := strict(value, &items, field); err != nil {
		return nil, err
	}
	out := [][]int32{}
	for i, item := range items {
		at := fmt.Sprintf("%s[%d]", field, i)
		var ids []int32
		if len(item) > 0 && item[0] != '[' {
			item = slices.Concat([]byte("["), item, []byte("]"))
		}
		if err := strict(item, &ids, at); err != nil {
			return nil, err
		}
		if len(ids) == 0 {
			return nil, fault.Field(at, "is empty")
		}
		for _, id := range ids {
			if id < 0 {
				return nil, fault.Field(at, "want an id of 0 or more, got %d", id)
			}
		}
		out = append(out, ids)
	}
	return out, nil
}

func parseBias(value json.RawMessage, field string) (Step, error) {
	var raw map[string]float64
	if err := strict(value, &raw, field); err != nil {
		return nil, err
	}
	bias := LogitBias{}
	for key, v := range raw {
		id, err := strconv.ParseInt(key, 10, 32)
		if err != nil || id < 0 {
			return nil, fault.Field(field, "want an id, got %q", key)
		}
		bias[int32(id)] = v
	}
	return bias, nil
}
