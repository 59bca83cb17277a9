package mongo

import (
	"context"
	"errors"
	"slices"
	"time"

	"go.mongodb.org/mongo-driver/v2/mongo"
)

// retryRest is the pause before something is tried again.
const retryRest = 10 * time.Millisecond

// rest waits, or returns the error of ctx.
func rest(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// backoff doubles a pause, up to a bound.
func backoff(d time.Duration) time.Duration { return min(2*d, time.Second) }

func hasWriteConcernError(err error) bool {
	var b mongo.BulkWriteException
	if errors.As(err, &b) {
		return b.WriteConcernError != nil
	}
	var w mongo.WriteException
	if errors.As(err, &w) {
		return w.WriteConcernError != nil
	}
	return false
}

// writeErrors gives the errors of single documents, whichever call sent the batch.
func writeErrors(err error) []mongo.WriteError {
	var w mongo.WriteException
	if errors.As(err, &w) {
		return w.WriteErrors
	}
	var b mongo.BulkWriteException
	var errs []mongo.WriteError
	if errors.As(err, &b) {
		for _, e := range b.WriteErrors {
			errs = append(errs, e.WriteError)
		}
	}
	return errs
}

// Error codes that are about the document itself: it will never go in.
const (
	codeDocumentValidation = 121
	codeTooLarge           = 10334
	codeBadValue           = 2
	codeKeyTooLong         = 17280
)

func isDocumentError(code int) bool {
	return slices.Contains([]int{codeDocumentValidation, codeTooLarge, codeBadValue, codeKeyTooLong}, code)
}

// verdict is what the reply to an ordered batch says.
type verdict struct {
	// stored documents from the start of the batch are committed by a majority.
	stored int
	// refused: the document behind them will never go in, for the reason err; the
	// ones behind it were not tried.
	refused bool
	// doubt: what became of the rest is not known.
	doubt bool
	err   error
}

// judge reads the reply to an ordered batch of n documents. Only errors about the
// document itself refuse it. Everything else makes the batch in doubt from that
// index on, also what comes inside ok:1 in the middle of a step-down (189, 10107,
// 11602), and from its start where the write concern was not met (L2, L3).
func judge(err error, n int) verdict {
	if err == nil {
		return verdict{stored: n}
	}
	errs := writeErrors(err)
	if hasWriteConcernError(err) || len(errs) != 1 {
		return verdict{doubt: true, err: err}
	}
	e := errs[0]
	if e.Index < 0 || e.Index >= n {
		return verdict{doubt: true, err: err}
	}
	if isDocumentError(e.Code) {
		return verdict{stored: e.Index, refused: true, err: e}
	}
	return verdict{stored: e.Index, doubt: true, err: err}
}
