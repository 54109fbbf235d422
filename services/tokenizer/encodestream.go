package tokenizer

import (
	"errors"
	"io"
	"unicode/utf8"

	"google.golang.org/grpc"

	"github.com/lamina-mesh/lamina/pkg/fault"
	tokenizerv1 "github.com/lamina-mesh/lamina/pkg/gen/lamina/tokenizer/v1"
	"github.com/lamina-mesh/lamina/pkg/vocab"
)

const (
	streamPart = 64 << 10 // bytes of text that are encoded at once
	streamHeld = 4 << 20  // maximum number of bytes that wait for a split point
	streamIDs  = 64 << 10 // ids of one response
)

// EncodeStream turns a long text into ids, part by part.
func (s *Service) EncodeStream(
	stream grpc.BidiStreamingServer[tokenizerv1.EncodeStreamRequest, tokenizerv1.EncodeStreamResponse]) error {
	frame, err := stream.Recv()
	if errors.Is(err, io.EOF) {
		return fault.Field("frame", "the stream ended before open")
	}
	if err != nil {
		return err
	}
	open := frame.GetOpen()
	if open == nil {
		return fault.Field("frame", "expected open first, got %T", frame.GetFrame())
	}
	m, err := s.find(stream.Context(), open.GetModel())
	if err != nil {
		return err
	}
	e, err := m.newEncoder(open)
	if err != nil {
		return err
	}
	for {
		frame, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		reply := &tokenizerv1.EncodeStreamResponse{}
		switch f := frame.GetFrame().(type) {
		case *tokenizerv1.EncodeStreamRequest_Push:
			if err := e.push(f.Push.GetText(), reply); err != nil {
				return err
			}
			if err := send(stream, reply); err != nil {
				return err
			}
		case *tokenizerv1.EncodeStreamRequest_Flush:
			if err := e.flush(reply); err != nil {
				return err
			}
			return send(stream, reply)
		default:
			return fault.Field("frame", "expected push or flush, got %T", f)
		}
	}
}

// send splits a reply into messages of bounded size.
func send(stream grpc.BidiStreamingServer[tokenizerv1.EncodeStreamRequest, tokenizerv1.EncodeStreamResponse],
	whole *tokenizerv1.EncodeStreamResponse) error {
	for len(whole.GetIds()) > streamIDs {
		part := &tokenizerv1.EncodeStreamResponse{Ids: whole.Ids[:streamIDs], More: true}
		whole.Ids = whole.Ids[streamIDs:]
		if whole.Starts != nil {
			part.Starts, part.Ends = whole.Starts[:streamIDs], whole.Ends[:streamIDs]
			whole.Starts, whole.Ends = whole.Starts[streamIDs:], whole.Ends[streamIDs:]
		}
		if err := stream.Send(part); err != nil {
			return err
		}
	}
	return stream.Send(whole)
}

// encoder is the state of one EncodeStream.
type encoder struct {
	model    *model
	splitter *splitter
	o        vocab.Options
	spans    bool
	suffix   []int32 // ids that the vocabulary adds after a text
	prefix   []int32 // ids that it adds before a text, until they were sent

	held  []byte
	begin split // split point before the held text
	at    uint64
	tried int // length of held text without a split point
}

func (m *model) newEncoder(open *tokenizerv1.EncodeOpen) (*encoder, error) {
	m.splits.Do(func() { m.splitter = newSplitter(m.Vocab) })
	e := &encoder{model: m, splitter: m.splitter, o: vocab.Options{Special: open.GetSpecial()}, spans: open.GetSpans()}
	if open.GetNoBos() {
		return e, nil
	}
	const text = "a"
	bare, err := m.Vocab.Encode(text, e.o)
	if err != nil {
		return e, nil // no text can be encoded; the first push reports the error
	}
	full, err := m.Vocab.Encode(text, vocab.Options{Special: e.o.Special, BOS: true})
	if err != nil {
		return nil, m.encodeFault("open", err)
	}
	e.prefix, e.suffix = surround(full, bare)
	return e, nil
}

// surround returns the parts of full before and after bare.
func surround(full, bare []int32) (prefix, suffix []int32) {
	for i := 0; i+len(bare) <= len(full); i++ {
		same := true
		for k, id := range bare {
			same = same && full[i+k] == id
		}
		if same {
			return full[:i], full[i+len(bare):]
		}
	}
	return nil, nil
}

// push appends text and adds the ids that can no longer change to the reply.
func (e *encoder) push(text []byte, reply *tokenizerv1.EncodeStreamResponse) error {
	if len(text) > 0 {
		e.addIDs(e.prefix, e.at, reply)
		e.prefix = nil
	}
	e.held = append(e.held, text...)
	for len(e.held)-e.tried >= streamPart {
		whole := len(e.held)
		for k := 1; k < utf8.UTFMax && k <= whole; k++ { // an incomplete character at the end
			if utf8.RuneStart(e.held[whole-k]) {
				if !utf8.FullRune(e.held[whole-k:]) {
					whole -= k
				}
				break
			}
		}
		done, err := e.encodeHeld(string(e.held[:whole]), reply)
		if err != nil {
			return err
		}
		if !done {
			e.tried = len(e.held)
			break
		}
	}
	if len(e.held) > streamHeld {
		return fault.New(fault.Exhausted, "encode a stream for model %q: %d bytes from byte %d on have no split point",
			e.model.Name, len(e.held), e.at)
	}
	return nil
}

// encodeHeld encodes the held text up to its last split point.
func (e *encoder) encodeHeld(text string, reply *tokenizerv1.EncodeStreamResponse) (bool, error) {
	rest := text
	for range 8 {
		end, ok := e.splitter.last(rest)
		if !ok {
			return false, nil
		}
		out, ok, err := e.splitter.part(text[:end.at], e.begin, end, e.o, e.spans)
		if err != nil {
			return false, e.fault(err)
		}
		if ok && e.splitter.joins(text[end.at:], end, e.o) {
			e.addEncoding(out, reply)
			e.held, e.tried, e.begin, e.at = append(e.held[:0], e.held[end.at:]...), 0, end, e.at+uint64(end.at)
			return true, nil
		}
		rest = rest[:end.at]
	}
	return false, nil
}

func (e *encoder) flush(reply *tokenizerv1.EncodeStreamResponse) error {
	e.addIDs(e.prefix, e.at, reply)
	out, ok, err := e.splitter.part(string(e.held), e.begin, split{}, e.o, e.spans)
	if err != nil {
		return e.fault(err)
	}
	if !ok {
		return fault.New(fault.Internal,
			"encode a stream for model %q: the text from byte %d on does not continue the text before it", e.model.Name,
			e.at)
	}
	e.addEncoding(out, reply)
	e.addIDs(e.suffix, e.at+uint64(len(e.held)), reply)
	e.held = nil
	return nil
}

func (e *encoder) fault(err error) error {
	var text *vocab.TextError
	if errors.As(err, &text) {
		return &fault.Error{Code: fault.Invalid, Field: "push.text", Msg: "encode a stream for model " + e.model.Name,
			Err: err}
	}
	return err
}

// addEncoding adds ids with their spans to a reply.
func (e *encoder) addEncoding(out vocab.Encoding, reply *tokenizerv1.EncodeStreamResponse) {
	reply.Ids = append(reply.Ids, wireIDs(out.IDs)...)
	for _, span := range out.Spans {
		reply.Starts = append(reply.Starts, e.at+uint64(max(span[0], 0)))
		reply.Ends = append(reply.Ends, e.at+uint64(max(span[1], 0)))
	}
}

// addIDs adds ids that belong to no text to a reply.
func (e *encoder) addIDs(ids []int32, at uint64, reply *tokenizerv1.EncodeStreamResponse) {
	reply.Ids = append(reply.Ids, wireIDs(ids)...)
	for range ids {
		if e.spans {
			reply.Starts, reply.Ends = append(reply.Starts, at), append(reply.Ends, at)
		}
	}
}
