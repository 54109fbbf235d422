package openai

import (
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"reflect"
	"strconv"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/lamina-mesh/lamina/pkg/fault"
	routerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/router/v1"
)

const (
	maxBody     = 4 << 20
	maxChoices  = 128              // limit of n and best_of; the backend also limits them by its memory
	maxJobs     = 256              // prompts times choices
	maxInteger  = 1 << 24          // limit of max_tokens and top_k, as in the backend
	maxTop      = 20               // candidates reported with a token, as in the backend
	readTimeout = 30 * time.Second // for a client to send its request
)

// decode reads a body of at most maxBody bytes; an error names the field or the byte.
func decode(w http.ResponseWriter, r *http.Request, v any) error {
	control := http.NewResponseController(w)
	if err := control.SetReadDeadline(time.Now().Add(readTimeout)); err != nil &&
		!errors.Is(err, http.ErrNotSupported) {
		return fault.Wrap(fault.Canceled, err, "set the read deadline of the body")
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxBody))
	if err != nil {
		return &fault.Error{Code: fault.Invalid, Field: "body",
			Msg: "read at most " + strconv.Itoa(maxBody) + " bytes in " + readTimeout.String(), Err: err}
	}
	// From here on the connection is read only to notice that the client has gone.
	if err := control.SetReadDeadline(time.Time{}); err != nil && !errors.Is(err, http.ErrNotSupported) {
		return fault.Wrap(fault.Canceled, err, "clear the read deadline of the body")
	}
	return unmarshal(body, v)
}

func unmarshal(body []byte, v any) error {
	err := json.Unmarshal(body, v)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &syntax):
		return fault.Field("body", "read JSON at byte %d: %v", syntax.Offset, err)
	case errors.As(err, &kind):
		field := kind.Field
		for _, embedded := range []string{"common.", "templateFields.", "shapes.", "rules.", "serving."} {
			field = strings.TrimPrefix(field, embedded)
		}
		if field == "" {
			field = "body"
		}
		return fault.Field(field, "want %s, got %s", jsonKind(kind.Type), kind.Value)
	}
	return fault.Field("body", "read JSON: %v", err)
}

// jsonKind returns the JSON name of a type.
func jsonKind(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Float32, reflect.Float64:
		return "a number in range"
	case reflect.Int, reflect.Int64, reflect.Uint32:
		return "a whole number in range"
	case reflect.Slice:
		return "a list"
	}
	return "an object"
}

// given reports whether an optional field is present and not null.
func given(raw json.RawMessage) bool { return len(raw) > 0 && string(raw) != "null" }

// texts is a string or a list of strings. Empty strings count as absent.
type texts []string

// UnmarshalJSON reads either form.
func (t *texts) UnmarshalJSON(raw []byte) error {
	*t = nil
	var one *string
	var list []string
	if json.Unmarshal(raw, &one) == nil {
		if one != nil {
			list = []string{*one}
		}
	} else if err := json.Unmarshal(raw, &list); err != nil {
		return err
	}
	for _, text := range list {
		if text != "" {
			*t = append(*t, text)
		}
	}
	return nil
}

// common holds the fields that both endpoints share.
type common struct {
	Model             string             `json:"model"`
	MaxTokens         *int64             `json:"max_tokens"`
	Temperature       *float32           `json:"temperature"`
	TopP              *float32           `json:"top_p"`
	TopK              *int64             `json:"top_k"`
	MinP              *float32           `json:"min_p"`
	Seed              *int64             `json:"seed"`
	N                 *int               `json:"n"`
	Stop              texts              `json:"stop"`
	Stream            bool               `json:"stream"`
	StreamOptions     *streamOptions     `json:"stream_options"`
	PresencePenalty   float32            `json:"presence_penalty"`
	FrequencyPenalty  float32            `json:"frequency_penalty"`
	RepetitionPenalty *float32           `json:"repetition_penalty"`
	LogitBias         map[string]float32 `json:"logit_bias"`
	IgnoreEnd         bool               `json:"ignore_end"`
	ResponseFormat    json.RawMessage    `json:"response_format"`
	Resumable         bool               `json:"resumable"`
	shapes
	rules
	serving

	created int64 // seconds since 1970
}

type streamOptions struct {
	IncludeUsage bool `json:"include_usage"`
}

// check validates the fields that both endpoints share, and returns n.
func (c *common) check() (int, error) {
	if _, _, err := c.grammar(); err != nil {
		return 0, err
	}
	if c.N == nil {
		return 1, nil
	}
	if *c.N < 1 || *c.N > maxChoices {
		return 0, fault.Field("n", "%d is not within 1..%d", *c.N, maxChoices)
	}
	return *c.N, nil
}

// limit returns a number of tokens for the backend, where 0 means as many as possible.
func limit(field string, v *int64) (uint32, error) {
	if v == nil {
		return 0, nil
	}
	if *v < 1 || *v > maxInteger {
		return 0, fault.Field(field, "%d is not within 1..%d", *v, maxInteger)
	}
	return uint32(*v), nil
}

// sampling returns the sampling parameters of choice i of n. All choices share the seed:
// the choice's number keys the randomness too, and choice 0 is what a request for one
// choice gets.
func (c *common) sampling(i, n int) (*routerv1.Sampling, error) {
	out := &routerv1.Sampling{
		Temperature: c.Temperature, TopP: c.TopP, MinP: c.MinP, RepetitionPenalty: c.RepetitionPenalty,
		PresencePenalty: c.PresencePenalty, FrequencyPenalty: c.FrequencyPenalty, Choice: uint32(i),
		BadWords: c.badTexts(),
	}
	if n > 1 {
		out.Choices = uint32(n)
	}
	var err error
	if out.Grammar, _, err = c.grammar(); err != nil {
		return nil, err
	}
	if out.Advanced, err = c.advanced(); err != nil {
		return nil, err
	}
	if out.RepetitionPenalty == nil {
		out.RepetitionPenalty = c.RepeatPenalty
	}
	if c.RepeatLastN != nil && *c.RepeatLastN == 0 { // a window of 0 tokens turns the penalty off
		out.RepetitionPenalty = proto.Float32(1)
	}
	if c.TopK != nil {
		if *c.TopK < -1 || *c.TopK > maxInteger { // -1 is a common spelling of "all"
			return nil, fault.Field("top_k", "%d is not within 0..%d", *c.TopK, maxInteger)
		}
		out.TopK = proto.Uint32(uint32(max(0, *c.TopK)))
	}
	if c.Seed != nil {
		seed := uint64(*c.Seed)
		out.Seed = &seed
	}
	for key, bias := range c.LogitBias {
		id, err := strconv.ParseUint(key, 10, 31)
		if err != nil {
			return nil, fault.Field("logit_bias", "%q is not a token id", key)
		}
		if out.LogitBias == nil {
			out.LogitBias = make(map[uint32]float32, len(c.LogitBias))
		}
		out.LogitBias[uint32(id)] = bias
	}
	return out, nil
}

func (c *common) usageWanted() bool { return c.StreamOptions != nil && c.StreamOptions.IncludeUsage }
