package exit

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

func TestCodes(t *testing.T) {
	t.Parallel()
	plain := errors.New("broken")
	tests := []struct {
		name string
		err  error
		want Code
	}{
		{"nothing", nil, OK},
		{"nothing with a code", With(Failed, nil), OK},
		{"an error of the command line", plain, Usage},
		{"an error with a code", With(Auth, plain), Auth},
		{"the first code stays", With(Failed, With(Timeout, plain)), Timeout},
		{"wrapped", fmt.Errorf("publish: %w", With(Config, plain)), Config},
		{"wrapped and given another", With(Failed, fmt.Errorf("publish: %w", With(Config, plain))), Config},
		{"interrupted", fmt.Errorf("publish: %w", context.Canceled), Interrupted},
	}
	for _, tt := range tests {
		if got := Of(tt.err); got != tt.want {
			t.Errorf("%s: got %d, want %d", tt.name, got, tt.want)
		}
	}
	if err := With(Auth, plain); !errors.Is(err, plain) || err.Error() != "broken" {
		t.Errorf("the wrapped error is lost: %v", err)
	}
}

func TestHint(t *testing.T) {
	t.Parallel()
	err := fmt.Errorf("serve: %w", &Error{Code: Connect, Err: errors.New("nobody"), Try: "rewindmq serve"})
	if got := Hint(err); got != "rewindmq serve" {
		t.Errorf("got %q", got)
	}
	if Told(err) || Told(nil) || !Told(fmt.Errorf("serve: %w", &Error{Err: err, Told: true})) {
		t.Error("who was told is mistaken")
	}
	if got := Hint(errors.New("x")); got != "" {
		t.Errorf("got %q", got)
	}
}
