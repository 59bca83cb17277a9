package lane

// rule names one rule of the design. The simulation turns them off one by one and
// demands that its checkers notice: a rule that nothing misses is removed. In the
// broker all are on.
type rule uint32

const (
	ruleLookUp       rule = 1 << iota // after a doubt, what stands there is looked up before anything is sent again
	ruleGiveUp                        // giving up puts a stopper at the first n in doubt
	ruleStopperDup                    // a stopper that meets a duplicate: look what stands there, try the next n
	ruleBehindFails                   // behind a message that failed, its publisher's later ones fail
	ruleMeetLooks                     // who meets a stopper not its own takes out what was claimed elsewhere
	ruleWakeLooks                     // after a pause: look who was claimed elsewhere before the next batch
	ruleDoubtLooks                    // after a doubt likewise
	ruleReopenLooks                   // a lane opened later is used only after a look at the claims since
	ruleEndStops                      // no writer goes on behind an end
	ruleReborn                        // a node that was declared dead opens lanes under its new name
	ruleLaneKey                       // a duplicate is mine only if it has my key
	ruleLaneMajority                  // a lane is used only after the majority acknowledged it
	ruleEndFirst                      // retiring puts an end first
	ruleEndMajority                   // retired only after the majority has the end
	ruleOwnStopper                    // a stopper that stands is found also where somebody went on behind it
	ruleGap                           // a gap in n leads back to passing
	ruleRepeat                        // an event that is not after H is a repeat
	ruleSilence                       // a silent stream leads back to passing
	ruleForeignMark                   // a mark with another key moves no vector
	ruleSameMarks                     // an adoption in doubt is sent again at the same marks
	ruleEndBefore                     // a keeper ends the adoption lanes of those before
	ruleAdoptLooks                    // an adoption in doubt is looked up
	ruleFresh                         // nothing is sent behind a document that retention may take
	rulePassTop                       // a pass stands at what was taken
)
