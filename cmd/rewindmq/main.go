// Command rewindmq is a lossless MQTT broker and its tools in one binary.
//
// The package only puts things together: one file for each command, which reads flags and calls a package below
// cmd/internal. What the broker is made of is assembled in serve.go and nowhere else.
//
// Goroutines: main owns one, which waits for signals. What a command starts, it waits for.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/exit"
)

func main() {
	ctx, release := interruptible()
	code := execute(ctx, newRoot(assemble), os.Args[1:], os.Stderr)
	release()
	os.Exit(int(code))
}

// interrupted is the cause of a context that a signal has ended.
type interrupted struct{ signal os.Signal }

func (i interrupted) Error() string { return "signal " + i.signal.String() }

// Is makes it the same as the end of any other context.
func (i interrupted) Is(target error) bool { return target == context.Canceled }

// interruptible returns a context that the first SIGINT, SIGTERM or SIGHUP ends. The second one ends the process at
// once. SIGHUP is that of a terminal that was closed: who has it ignored (nohup) wants to go on.
func interruptible() (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancelCause(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, os.Interrupt, syscall.SIGTERM)
	if !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	done := make(chan struct{})
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 2 {
			select {
			case s := <-signals:
				if ctx.Err() != nil {
					os.Exit(int(exit.Interrupted))
				}
				cancel(interrupted{s})
			case <-done:
				return
			}
		}
	}()
	return ctx, func() {
		signal.Stop(signals)
		close(done)
		<-ended
		cancel(nil)
	}
}

// execute runs one command line and prints its error: what happened, and what to try.
func execute(ctx context.Context, root *cobra.Command, args []string, stderr io.Writer) exit.Code {
	root.SetArgs(args)
	root.SetErr(stderr)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exit.OK
	}
	code := exit.Of(err)
	if exit.Told(err) {
		return code
	}
	fmt.Fprintf(stderr, "%s: %v\n", root.Name(), err)
	hint := exit.Hint(err)
	if hint == "" && code == exit.Usage {
		hint = cmd.CommandPath() + " --help"
	}
	if hint != "" {
		fmt.Fprintf(stderr, "Try: %s\n", hint)
	}
	return code
}

func newRoot(assemble assembler) *cobra.Command {
	root := &cobra.Command{
		Use:   "rewindmq",
		Short: "A lossless MQTT broker: a publish is acknowledged when it is on disk, and replayed to whoever missed it",
		Long: "rewindmq is an MQTT broker that keeps what it acknowledged. A publish is appended to a log, acknowledged when the\n" +
			"log has it for good, delivered from the log, and replayed from the log to clients that were away.\n\n" +
			"Exit codes: 0 done, 1 failed, 2 wrong usage, 3 wrong configuration, 4 cannot connect, 5 not authorized,\n" +
			"6 timeout, 7 verification failed, 8 the store failed, 130 interrupted.",
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.AddCommand(
		newServe(assemble), newPub(), newSub(), newSessions(), newRetained(), newMessages(), newDeliveries(), newBackup(), newConfig(), newSchema(), newHealthcheck(),
		newVersion(),
	)
	return root
}

// running makes the body of a command: an error that says nothing about its exit code gets the general one. What cobra
// itself reports keeps none, and is a mistake on the command line.
func running(body func(cmd *cobra.Command, args []string) error) func(*cobra.Command, []string) error {
	return func(cmd *cobra.Command, args []string) error { return exit.With(exit.Failed, body(cmd, args)) }
}

// usage is a mistake on the command line that cobra cannot see.
func usage(format string, args ...any) error {
	return &exit.Error{Code: exit.Usage, Err: fmt.Errorf(format, args...)}
}
