"""The ten lessons, in order; each file holds one. To add a lesson, write one more file and name it here."""

from lastlayer.learn.lesson import Lesson
from lastlayer.learn.lessons.distributions import LESSON as DISTRIBUTIONS
from lastlayer.learn.lessons.draws import LESSON as DRAWS
from lastlayer.learn.lessons.likelihood import LESSON as LIKELIHOOD
from lastlayer.learn.lessons.logsumexp import LESSON as LOGSUMEXP
from lastlayer.learn.lessons.loss import LESSON as LOSS
from lastlayer.learn.lessons.mistakes import LESSON as MISTAKES
from lastlayer.learn.lessons.objectives import LESSON as OBJECTIVES
from lastlayer.learn.lessons.odds import LESSON as ODDS
from lastlayer.learn.lessons.softmax import LESSON as SOFTMAX
from lastlayer.learn.lessons.surprise import LESSON as SURPRISE

LESSONS: tuple[Lesson, ...] = (
    ODDS,
    SOFTMAX,
    LOGSUMEXP,
    LIKELIHOOD,
    SURPRISE,
    DISTRIBUTIONS,
    LOSS,
    MISTAKES,
    DRAWS,
    OBJECTIVES,
)
