package publish

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
)

// maxRecord bounds one record, so that a quote that is never closed does not swallow a whole file into memory. It is
// the largest packet that a broker can be set to take.
const maxRecord = 8 << 20

// Source gives the messages to publish, in order.
type Source interface {
	// Next returns the next message, whose payload belongs to the caller, or io.EOF. It may block, and is called by
	// one goroutine.
	Next() (Message, error)
}

// Records cuts a text into records: lines, or the rows of a CSV file. A row is what RFC 4180 says: a line end between
// quotes belongs to the row. Bytes are never changed; the line end, LF or CRLF, is not part of the record. An empty
// line is an empty record.
type Records struct {
	r         *bufio.Reader
	delimiter byte // 0: plain lines, quotes mean nothing
	row       int64
	line      int64 // lines read so far
	offset    int64
}

// Lines returns the lines of r.
func Lines(r io.Reader) *Records { return &Records{r: bufio.NewReaderSize(r, 64<<10)} }

// CSV returns the rows of r, whose fields are separated by delimiter.
func CSV(r io.Reader, delimiter byte) *Records {
	return &Records{r: bufio.NewReaderSize(r, 64<<10), delimiter: delimiter}
}

// Next returns the next record.
func (s *Records) Next() (Message, error) {
	var record []byte
	quotes := quoting{delimiter: s.delimiter}
	first := s.line + 1
	for {
		part, err := s.r.ReadSlice('\n')
		record = append(record, part...)
		if len(record) > maxRecord {
			return Message{}, s.tooLong(first, quotes)
		}
		quotes.read(part)
		switch {
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case errors.Is(err, io.EOF) && quotes.open():
			return Message{}, fmt.Errorf("publish: line %d: a quote is not closed until the end of the file", first)
		case errors.Is(err, io.EOF) && len(record) == 0:
			return Message{}, io.EOF
		case err != nil && !errors.Is(err, io.EOF):
			return Message{}, fmt.Errorf("publish: line %d: %w", first, err)
		}
		s.line++
		if quotes.open() {
			continue
		}
		s.row++
		s.offset += int64(len(record))
		return Message{Row: s.row, End: s.offset, Payload: trimLineEnd(record)}, nil
	}
}

func (s *Records) tooLong(first int64, quotes quoting) error {
	why := "the record is longer than 8 MiB"
	if quotes.open() {
		why += "; a quote is probably not closed"
	}
	return fmt.Errorf("publish: line %d: %s", first, why)
}

// trimLineEnd takes LF or CRLF off the end.
func trimLineEnd(record []byte) []byte {
	trimmed, found := bytes.CutSuffix(record, []byte("\n"))
	if found {
		trimmed = bytes.TrimSuffix(trimmed, []byte("\r"))
	}
	return trimmed
}

// quoting tells whether a position in a row lies between quotes. A quote opens only at the beginning of a field; in
// the middle of a field without quotes (5" pipe) it is a letter.
type quoting struct {
	delimiter byte
	state     byte
}

const (
	fieldStart byte = iota
	plain
	quoted
	quoteInQuoted // a quote inside a quoted field: the end of it, or the first half of a doubled one
)

func (q *quoting) open() bool { return q.state == quoted }

func (q *quoting) read(part []byte) {
	if q.delimiter == 0 {
		return
	}
	for _, c := range part {
		switch {
		case q.state == quoted:
			if c == '"' {
				q.state = quoteInQuoted
			}
		case c == '"' && (q.state == fieldStart || q.state == quoteInQuoted):
			q.state = quoted
		case c == q.delimiter:
			q.state = fieldStart
		default:
			q.state = plain
		}
	}
}

// One is a source of a single message.
type One struct {
	payload []byte
	done    bool
}

// Single returns a source that gives payload once.
func Single(payload []byte) *One { return &One{payload: payload} }

// Next returns the message, then io.EOF.
func (o *One) Next() (Message, error) {
	if o.done {
		return Message{}, io.EOF
	}
	o.done = true
	return Message{Row: 1, End: int64(len(o.payload)), Payload: o.payload}, nil
}
