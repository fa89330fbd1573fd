"""What plain ``nbgrader`` commands find here; ``make assignments`` uses it as well."""

from traitlets.config import get_config

c = get_config()
c.CourseDirectory.course_id = "mlguide"
c.ExecutePreprocessor.timeout = 60
