package main

import (
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"rewindmq/cmd/internal/publish"
)

// pub are the flags of rewindmq pub.
type pub struct {
	client
	topic     string
	retain    bool
	message   string
	file      string
	lines     bool
	stdin     bool
	csv       string
	header    string
	delimiter string
	rate      float64
	timeout   time.Duration
	progress  bool
}

// headerProperty is the user property that carries a CSV file's header row.
const headerProperty = "csv-header"

func newPub() *cobra.Command {
	var p pub
	cmd := &cobra.Command{
		Use:   "pub -t TOPIC (-m TEXT | -f FILE | -l | -s | --csv FILE)",
		Short: "Publish messages, and end when the server has acknowledged all of them",
		Long: "Publishes over MQTT 5. At QoS 2, the default, a lost connection or a killed broker leaves nothing out and nothing\n" +
			"twice: pub connects again, continues its session and ends when all is acknowledged. At QoS 1 what was in flight\n" +
			"may arrive twice.\n\n" +
			"--csv sends each row of a file as it stands there, without its line end. A line end between quotes belongs to the\n" +
			"row; an empty line is an empty message. `rewindmq sub -o csv` writes each message with a line end (LF), so a file\n" +
			"with LF line ends comes out as it went in.",
		Example: "  rewindmq pub -t dev/1 -m hello\n" +
			"  rewindmq pub -t dev/7/reading --csv readings.csv --rate 100 --progress\n" +
			"  tail -f log | rewindmq pub -t logs/host -l",
		Args: cobra.NoArgs,
		RunE: running(func(cmd *cobra.Command, _ []string) error { return p.run(cmd) }),
	}
	p.add(cmd)
	f := cmd.Flags()
	f.StringVarP(&p.topic, "topic", "t", "", "`topic` to publish to (required)")
	f.BoolVarP(&p.retain, "retain", "r", false, "have the server retain the message")
	f.StringVarP(&p.message, "message", "m", "", "publish this `text`")
	f.StringVarP(&p.file, "file", "f", "", "publish the content of a `file` as one message")
	f.BoolVarP(&p.lines, "stdin-line", "l", false, "publish each line of standard input")
	f.BoolVarP(&p.stdin, "stdin-file", "s", false, "publish standard input as one message")
	f.StringVar(&p.csv, "csv", "", "publish each row of a CSV `file`; - is standard input")
	f.StringVar(&p.header, "header", "keep", "the first row of the CSV file: keep it as a message, skip it, or make it a property: "+headerProperty+" of each message")
	f.StringVar(&p.delimiter, "delimiter", ",", "`byte` between the fields of the CSV file")
	f.Float64Var(&p.rate, "rate", 0, "messages a second at most; 0: as fast as the server takes them")
	f.DurationVar(&p.timeout, "timeout", time.Minute, "give up (exit code 6) when nothing is acknowledged for so long")
	f.BoolVar(&p.progress, "progress", false, "show progress on standard error")
	return cmd
}

func (p *pub) run(cmd *cobra.Command) error {
	o, err := p.options(cmd)
	if err != nil {
		return err
	}
	source, size, closeInput, err := p.source(cmd, &o)
	if err != nil {
		return err
	}
	defer closeInput()
	stderr := cmd.ErrOrStderr()
	if p.progress {
		meter := publish.NewMeter(stderr, size, p.noun(), onTerminal(stderr))
		defer meter.Finish()
		o.Progress = meter.Update
	}
	result, err := publish.Run(cmd.Context(), source, o)
	if !p.quiet && result.Connected {
		cmd.PrintErrln(cmd.CommandPath() + ": " + result.Summary(o.QoS, p.noun()))
	}
	return err
}

// noun says what is counted.
func (p *pub) noun() string {
	if p.csv != "" {
		return "row"
	}
	return "message"
}

// options judges the flags.
func (p *pub) options(cmd *cobra.Command) (publish.Options, error) {
	connection, err := p.client.options(cmd, "rewindmq-pub-")
	if err != nil {
		return publish.Options{}, err
	}
	if err := checkText("topic (-t)", p.topic); err != nil {
		return publish.Options{}, err
	}
	given := 0
	for _, name := range []string{"message", "file", "stdin-line", "stdin-file", "csv"} {
		if cmd.Flags().Changed(name) {
			given++
		}
	}
	switch {
	case strings.ContainsAny(p.topic, "+#"):
		return publish.Options{}, usage("-t %s: a topic to publish to has no wildcards", p.topic)
	case given != 1:
		return publish.Options{}, usage("one of -m, -f, -l, -s and --csv says what to publish")
	case p.header != "keep" && p.header != "skip" && p.header != "property":
		return publish.Options{}, usage("--header %s: it is keep, skip or property", p.header)
	case len(p.delimiter) != 1 || strings.ContainsAny(p.delimiter, "\"\r\n"):
		return publish.Options{}, usage("--delimiter %q: it is one byte, and neither a quote nor a line end", p.delimiter)
	case p.rate < 0:
		return publish.Options{}, usage("--rate %v: it is not negative", p.rate)
	case p.timeout <= 0:
		return publish.Options{}, usage("--timeout %v: it is more than 0", p.timeout)
	}
	return publish.Options{
		Link: connection, Topic: p.topic, QoS: p.qos, Retain: p.retain, Rate: p.rate, Timeout: p.timeout,
		ConnectWait: p.wait, Notice: p.notice(cmd),
	}, nil
}

// source returns what is to be published. It may add a property to o.
func (p *pub) source(cmd *cobra.Command, o *publish.Options) (source publish.Source, size int64, done func(), err error) {
	done = func() {}
	switch {
	case p.csv != "":
		in, size, err := openInput(cmd, p.csv)
		if err != nil {
			return nil, 0, nil, err
		}
		rows := publish.CSV(in, p.delimiter[0])
		if err := p.takeHeader(rows, o); err != nil {
			return nil, 0, nil, errors.Join(err, in.Close())
		}
		return rows, size, func() { _ = in.Close() }, nil
	case p.lines:
		return publish.Lines(cmd.InOrStdin()), 0, done, nil
	case p.stdin, p.file != "":
		name := p.file
		if p.stdin {
			name = "-"
		}
		in, _, err := openInput(cmd, name)
		if err != nil {
			return nil, 0, nil, err
		}
		payload, err := io.ReadAll(in)
		if err = errors.Join(err, in.Close()); err != nil {
			return nil, 0, nil, fmt.Errorf("read the message: %w", err)
		}
		return publish.Single(payload), int64(len(payload)), done, nil
	default:
		return publish.Single([]byte(p.message)), int64(len(p.message)), done, nil
	}
}

// takeHeader reads the first row when it is not to be a message.
func (p *pub) takeHeader(rows publish.Source, o *publish.Options) error {
	if p.header == "keep" {
		return nil
	}
	first, err := rows.Next()
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return err
	}
	if p.header == "property" {
		text := string(first.Payload)
		if err := checkText("header row", text); err != nil {
			return err
		}
		o.User = [][2]string{{headerProperty, text}}
	}
	return nil
}
