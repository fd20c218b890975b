"""Names of the tags of MLflow's runs and model versions."""

# Of each run
KIND = "pneumo.kind"  # study, train, trial, evaluate, promote, predict, explore, prepare, worker, …
EXPERIMENT = "pneumo.experiment"
DATA = "pneumo.data"  # name of the data set, without a path
DATA_DIGEST = "pneumo.data_digest"
SYNTHETIC = "pneumo.synthetic"  # true or false
PATIENTS = "pneumo.patients"  # `unknown` if the names of some images contain no patient
POSITIVE = "pneumo.positive"  # labels of the data's table that mean pneumonia, if it has several
STUDY = "pneumo.study"  # name of the study that the run belongs to
REASON = "pneumo.reason"  # why it failed, or why a candidate was not promoted
GIT_COMMIT = "pneumo.git_commit"
PARENT = "mlflow.parentRunId"
NOTE = "mlflow.note.content"  # description, in Markdown
SOURCE = "mlflow.source.name"  # the file or the address that started the run
SOURCE_COMMIT = "mlflow.source.git.commit"

# Tags that a study's run passes on to its trials' runs, and a trial to its model's version
PROVENANCE = (EXPERIMENT, DATA, DATA_DIGEST, SYNTHETIC, PATIENTS, POSITIVE, STUDY)

# Of a run that a process works on
HOST = "pneumo.host"
PID = "pneumo.pid"
PROCESS = "pneumo.process"  # the `ProcessId` as JSON

# Of a trial
TRIAL_NUMBER = "optuna.trial_number"
STATE = "optuna.state"  # COMPLETE, PRUNED or FAIL

# Of an ensemble of trials, and of its model's version
MEMBERS = "pneumo.members"  # JSON: their numbers, each as often as it counts

# Of a run that evaluates a model
MODEL = "pneumo.model"  # name and version
MODEL_ID = "pneumo.model_id"  # MLflow's id of the model, once the evaluation is complete
SPLIT = "pneumo.split"
EXTERNAL = "pneumo.external"  # true for images of another data set
SKEW = "pneumo.preprocessing_skew"  # what was done to the pixels
PREVALENCE = "pneumo.prevalence"  # to which probabilities are adjusted, also of a prediction
RECALIBRATION = "pneumo.recalibration"  # share of the patients on whom it is calibrated again
IMAGES_DIGEST = "pneumo.images_digest"  # of the test images
LOOKS = "pneumo.test_looks"  # JSON: MLflow's id of the model → number of looks at these

# Of a promotion
CANDIDATE = "pneumo.candidate"
COMPARED_WITH = "pneumo.champion"
PROMOTED = "pneumo.promoted"  # true or false
ROLLBACK = "pneumo.rollback"

# Of a version of a registered model
TEST_EVALUATIONS = "pneumo.test_evaluations"  # number of evaluations on its own test images
MODEL_DIGEST = "pneumo.model_digest"  # of its files, as they were registered
EVALUATION_RUN = "pneumo.evaluation_run"  # the last one on its own test images
PROMOTION = "pneumo.promotion"  # the last decision about it, in words
PROMOTION_RUN = "pneumo.promotion_run"
WAS_CHAMPION = "pneumo.was_champion"  # true once it has become champion
THRESHOLD = "pneumo.threshold"  # its own, stored when it is promoted
VERSIONS = "mlflow.modelVersions"  # of a logged model, for MLflow's page on it
