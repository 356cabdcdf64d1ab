package protocol

// Names, message layouts and limits that only the tests read.
var (
	MessageHead   = messageHead
	ParseAcquired = parseAcquired
	ParseFilled   = parseFilled

	ParseLockAnswer = parseLockAnswer

	IsReadOnly = isReadOnly
	Passing    = passing
	IsTryAgain = isTryAgain
)

const (
	Longest                = longest
	StageAbove             = stageAbove
	LargestNotified        = largestNotified
	LargestNotifiedCluster = largestNotifiedCluster
	MostNotified           = mostNotified
	MostWaiters            = mostWaiters
	LongestFailure         = longestFailure
)

func (f Failure) Encode() string { return f.encode() }

func (k Key) Meta() string               { return k.meta() }
func (k Key) Marks() string              { return k.marks() }
func (k Key) Staged(owner string) string { return k.staged(owner) }
func (l Lock) Names() []string {
	return []string{l.keys[0].(string), l.keys[1].(string)}
}
